"""Users: people and programs, what they are granted and which objects they see. `millrace users` as pages."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from api.console import site
from api.console.actions import Acting, needs
from infra.identity import api_keys, first, subjects
from infra.identity.principal import Principal
from infra.identity.subjects import Subject, SubjectError
from schemas.roles import DOMAINS, EVERYWHERE, HOME_TENANT, OBJECTS, ROLES

router: APIRouter = site.router()

PASSWORD_BYTES = 18
SAID = {
    "changed": "Changed. It holds within seconds.",
    "disabled": "Disabled. Its sessions, tokens and keys end within seconds.",
    "enabled": "Let in again.",
}

GRANTS: tuple[tuple[str, str], ...] = tuple(
    (f"{role.name}:{domain}" if role.by_domain else role.name, role.about)
    for role in ROLES.values()
    for domain in ((EVERYWHERE, *DOMAINS) if role.by_domain else ("",))
)
"""Every grant there is, with what it allows."""


@router.get("/users", dependencies=[needs("identity:read", "users.list")])
async def list_(request: Request, match: Annotated[str, Query(max_length=100)] = "") -> Response:
    console = site.console(request)

    def find() -> list[Subject]:
        with console.identities() as connection:
            return subjects.everyone(connection)

    found = [s for s in await console.apart(find) if match.strip().lower() in f"{s.subject} {s.tenant}"]
    request.state.rows = len(found)
    return site.page(
        request,
        "users.html",
        active="users",
        subjects=found,
        match=match,
        grants=GRANTS,
        tenant=HOME_TENANT,
        kinds=sorted(OBJECTS.values()),
        only=only,
    )


@router.post("/users", dependencies=[needs("identity:write", "users.add")])
async def add(request: Request, actor: Acting) -> Response:
    """Make a subject, and show its password, once."""
    console = site.console(request)
    form = await request.form()
    name, tenant = _text(form, "name"), _text(form, "tenant") or HOME_TENANT
    kind: Literal["person", "program"] = "program" if _text(form, "kind") == "program" else "person"
    request.state.object = name
    password = secrets.token_urlsafe(PASSWORD_BYTES)

    def make() -> None:
        with console.identities() as connection:
            subjects.create(connection, name, kind, tenant, password, _grants(form), _objects(form))

    await console.apart(make)
    return await _page(request, name, password=password)


@router.get("/users/{name}", dependencies=[needs("identity:read", "users.show")])
async def show(request: Request, name: str, said: Annotated[str, Query(max_length=20)] = "") -> Response:
    return await _page(request, name, said=SAID.get(said))


@router.post("/users/{name}/grants", dependencies=[needs("identity:write", "users.grant")])
async def grant(request: Request, name: str, actor: Acting) -> Response:
    """Replace what a subject is granted, and the objects that it sees."""
    form = await request.form()
    grants, objects = _grants(form), _objects(form)
    await _change(request, actor, name, grants=grants, objects=objects)
    return site.to(f"/console/users/{name}?said=changed")


@router.post("/users/{name}/disable", dependencies=[needs("identity:write", "users.disable")])
async def disable(request: Request, name: str, actor: Acting) -> Response:
    await _change(request, actor, name, disabled=True)
    return site.to(f"/console/users/{name}?said=disabled")


@router.post("/users/{name}/enable", dependencies=[needs("identity:write", "users.enable")])
async def enable(request: Request, name: str, actor: Acting) -> Response:
    await _change(request, actor, name, disabled=False)
    return site.to(f"/console/users/{name}?said=enabled")


@router.post("/users/{name}/password", dependencies=[needs("identity:write", "users.password")])
async def password(request: Request, name: str, actor: Acting) -> Response:
    """Give a subject a new password, and show it, once. Its sessions end."""
    made = secrets.token_urlsafe(PASSWORD_BYTES)
    await _change(request, actor, name, password=made)
    first.forget_password(site.console(request).settings, name)
    return await _page(request, name, password=made)


async def _change(
    request: Request,
    actor: Principal,
    name: str,
    *,
    password: str | None = None,
    grants: Sequence[str] | None = None,
    objects: dict[str, list[str]] | None = None,
    disabled: bool | None = None,
) -> None:
    """Change a subject. Raises `Refusal` where it cannot be, or where it is whoever asks."""
    console = site.console(request)
    request.state.object = name if grants is None else f"{name}: {' '.join(grants)}"
    if name == actor.subject:
        # Nobody lifts or locks out themselves by a slip, or with a session that somebody else has taken.
        raise SubjectError("that is you; let another administrator change it, or `millrace users`")

    def act() -> None:
        with console.identities() as connection:
            subjects.change(
                connection, name, password=password, grants=grants, objects=objects, disabled=disabled
            )

    await console.apart(act)


async def _page(request: Request, name: str, *, said: str | None = None, password: str = "") -> Response:
    console = site.console(request)

    def find() -> tuple[Subject, list[api_keys.ApiKey]]:
        with console.identities() as connection:
            found = subjects.find(connection, name)
            return found, [k for k in api_keys.every(connection) if k.subject == name]

    subject, keys = await console.apart(find)
    return site.page(
        request,
        "user.html",
        active="users",
        subject=subject,
        keys=keys,
        grants=GRANTS,
        kinds=sorted(OBJECTS.values()),
        only=only,
        now=datetime.now(UTC),
        said=said,
        password=password,
    )


def only(subject: Subject) -> list[str]:
    """The objects that a subject is held to, as people write them."""
    return [f"{kind}={','.join(ids)}" for kind, ids in sorted(subject.objects.items())]


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


def _grants(form: FormData) -> list[str]:
    return sorted({value for value in form.getlist("grant") if isinstance(value, str)})


def _objects(form: FormData) -> dict[str, list[str]]:
    return subjects.objects_of([line for line in _text(form, "objects").splitlines() if line.strip()])
