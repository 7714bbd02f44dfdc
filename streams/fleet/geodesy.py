"""Metres and degrees on WGS 84. Longitudes are compared by difference only, so ±180° is no edge."""

from __future__ import annotations

from math import asin, atan, cos, degrees, pi, radians, sin, sqrt, tan

EQUATOR_M = 6_378_137.0
FLATTENING = 1 / 298.257223563
_ECCENTRICITY_2 = FLATTENING * (2 - FLATTENING)


def wrapped(longitude: float) -> float:
    """The same longitude in [-180, 180). Exact for every difference of two longitudes in range."""
    while longitude >= 180.0:
        longitude -= 360.0
    while longitude < -180.0:
        longitude += 360.0
    return longitude


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Metres that one degree of longitude and one of latitude span at `latitude`."""
    w = 1 - _ECCENTRICITY_2 * sin(radians(latitude)) ** 2
    east = EQUATOR_M * cos(radians(latitude)) / sqrt(w)
    north = EQUATOR_M * (1 - _ECCENTRICITY_2) / w**1.5
    return radians(east), radians(north)


def distance_m(lon_1: float, lat_1: float, lon_2: float, lat_2: float) -> float:
    """The geodesic between two points in metres, by Lambert's formula for long lines.

    Within 1e-5 of the true length up to several thousand kilometres; not for antipodes.
    Source: W. D. Lambert, The distance between two widely separated points, 1942.
    """
    beta_1 = atan((1 - FLATTENING) * tan(radians(lat_1)))
    beta_2 = atan((1 - FLATTENING) * tan(radians(lat_2)))
    half_lon = radians(wrapped(lon_2 - lon_1)) / 2
    chord = sin((beta_2 - beta_1) / 2) ** 2 + cos(beta_1) * cos(beta_2) * sin(half_lon) ** 2
    if chord == 0.0:
        return 0.0
    sigma = 2 * asin(min(1.0, sqrt(chord)))
    p, q = (beta_1 + beta_2) / 2, (beta_2 - beta_1) / 2
    x = (sigma - sin(sigma)) * (sin(p) * cos(q)) ** 2 / (1 - chord) if chord < 1.0 else 0.0
    y = (sigma + sin(sigma)) * (cos(p) * sin(q)) ** 2 / chord
    return EQUATOR_M * (sigma - FLATTENING / 2 * (x + y))


def degrees_around(latitude: float, reach_m: float) -> tuple[float, float]:
    """Degrees of longitude and latitude that surely hold all points within `reach_m` of a point there.

    A per cent is added for the ellipsoid; a reach over a pole needs all longitudes.
    """
    angle = 1.01 * reach_m / (EQUATOR_M * (1 - FLATTENING))
    colatitude = pi / 2 - radians(abs(latitude))
    if angle >= colatitude:
        return 360.0, degrees(angle)
    # The meridian that touches a small circle: sin(dlon) = sin(angle) / cos(lat).
    ratio = sin(angle) / sin(colatitude)
    return degrees(asin(ratio)) if ratio < 1 else 180.0, degrees(angle)
