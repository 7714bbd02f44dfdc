"""Pipelines: all of them as graphs that move, and each with its partitions, plots and processes."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.console import figures, graph, site, stream
from api.console.actions import needs
from api.console.observer import Look, readers
from infra.problems import Problem
from schemas.declare import Pipeline, Pipelines

router: APIRouter = site.router()

PLOT_S = 6.0
"""How often plots are drawn anew: a point more in three looks is all that an eye sees of them."""


def drawings(pipelines: Pipelines) -> dict[str, graph.Drawing]:
    """Each pipeline's drawing, by name."""
    return {p.name: graph.draw(p) for p in pipelines}


@router.get("", dependencies=[needs("ops:read", "pipelines.show")])
async def overview(request: Request) -> Response:
    console = site.console(request)
    look = await console.apart(console.observer.first_look)
    drawn = drawings(console.pipelines)
    return site.page(
        request,
        "overview.html",
        active="pipelines",
        pipelines=list(console.pipelines),
        drawings=drawn,
        href=figures.link,
        values=figures.graph(look, console.pipelines, drawn),
        edges={p.name: list(figures.edges_in_words(look, p, drawn[p.name])) for p in console.pipelines},
    )


@router.get(
    "/live/pipelines", dependencies=[needs("ops:read", "pipelines.watch")], response_class=stream.Events
)
async def watch_all(request: Request) -> Response:
    console = site.console(request)
    console.streams.require()
    drawn = drawings(console.pipelines)
    return stream.answer(
        request, stream.changes(console, lambda look: figures.graph(look, console.pipelines, drawn))
    )


@router.get("/pipelines/{name}", dependencies=[needs("ops:read", "pipelines.show")])
async def one(request: Request, name: str) -> Response:
    console = site.console(request)
    pipeline = _pipeline(console, name)
    look = await console.apart(console.observer.first_look)
    values = await console.apart(_values(console, pipeline), look)
    drawing = graph.draw(pipeline)
    return site.page(
        request,
        "pipeline.html",
        active="pipelines",
        pipeline=pipeline,
        drawing=drawing,
        href=figures.link,
        values=values,
        edges=list(figures.edges_in_words(look, pipeline, drawing)),
        readers=[(c, next(t for t in pipeline.topics if t.name == n)) for c, n in readers(pipeline)],
        processes=figures.processes_of(look, pipeline),
    )


@router.get(
    "/live/pipelines/{name}",
    dependencies=[needs("ops:read", "pipelines.watch")],
    response_class=stream.Events,
)
async def watch_one(request: Request, name: str) -> Response:
    console = site.console(request)
    pipeline = _pipeline(console, name)
    console.streams.require()
    return stream.answer(request, stream.changes(console, _values(console, pipeline)))


def _pipeline(console: site.Console, name: str) -> Pipeline:
    try:
        return console.pipelines.by_name[name]
    except KeyError:
        known = ", ".join(console.pipelines.by_name)
        raise Problem(
            404, "No such pipeline", f"There is no pipeline {name!r}; there are: {known}."
        ) from None


def _values(console: site.Console, pipeline: Pipeline) -> Callable[[Look], dict[str, str]]:
    """The values of a pipeline's page; its plots are those of the last time for a while."""
    drawing = graph.draw(pipeline)
    plots: dict[str, str] = {}
    plotted_s = float("-inf")

    def values(look: Look) -> dict[str, str]:
        nonlocal plots, plotted_s
        if time.monotonic() - plotted_s > PLOT_S:
            plotted_s = time.monotonic()
            plots = figures.plots(list(console.observer.history), pipeline)
        return figures.pipeline_page(look, pipeline, drawing) | plots

    return values
