"""What all pages share: the parts they ask, the templates they are made of, and how trouble looks."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlencode

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.console import actions, session, words
from api.console.observer import Look, Observer
from api.console.pages import PAGES, Page
from api.console.parts import Away, Part, Trouble, trouble_of
from infra import problems
from infra.codec import Codec
from infra.identity import secured
from infra.identity.principal import Principal
from infra.identity.secured import Unsecured
from infra.postgres import Connection, connect
from infra.problems import Problem
from infra.settings import Settings
from schemas.declare import Pipelines

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
WORKERS = 12
"""How many requests may ask Kafka, Postgres or registry at once; others wait for them, not the whole API."""
STREAMS = 64
TAILS = 8
"""How many watch live events at once: each holds a consumer and, while it waits for records, a thread."""
STATEMENT_MS = 15_000

P = ParamSpec("P")
T = TypeVar("T")


class Console:
    """The console of one application."""

    def __init__(self, settings: Settings, pipelines: Pipelines, ending: threading.Event) -> None:
        self.settings = settings
        self.operating = settings.as_operator()
        self.pipelines = pipelines
        self.observer = Observer(settings, pipelines)
        self.ending = ending
        self.streams = _Seats(STREAMS)
        self.tails = _Seats(TAILS)
        self._workers = anyio.CapacityLimiter(WORKERS)
        self._tailing = anyio.CapacityLimiter(TAILS)
        self._codec: Codec | None = None

    async def apart(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work that waits, in a thread of its own."""
        return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._workers)

    async def tailing(self, work: Callable[[], T]) -> T:
        """As `apart`, for readers of live events: they shall not take the threads of pages."""
        return await anyio.to_thread.run_sync(work, limiter=self._tailing)

    @contextmanager
    def database(self, *, reading: bool = True) -> Iterator[Connection]:
        """A connection: of the role that may only read, or of the owner. Raises `Away`, `psycopg.Error`."""
        self.require(Part.DATABASE)
        url = self.settings.database_reader_url if reading else self.settings.database_url
        with closing(connect(url, "millrace-console")) as connection:
            connection.execute("SET TIME ZONE 'UTC'")
            connection.execute(f"SET statement_timeout TO {STATEMENT_MS}".encode())
            yield connection

    @contextmanager
    def identities(self) -> Iterator[Connection]:
        """A connection of the role that manages subjects and keys, and sees no data. Raises as `database`."""
        self.require(Part.DATABASE)
        with closing(connect(self.settings.database_identity_url, "millrace-console")) as connection:
            connection.execute(f"SET statement_timeout TO {STATEMENT_MS}".encode())
            yield connection

    @property
    def codec(self) -> Codec:
        """The codec, which remembers the schemas that it has asked for."""
        if self._codec is None:
            self._codec = Codec(self.settings.schema_registry_url)
        return self._codec

    def require(self, *parts: Part) -> None:
        """Raise `Away` where the last look has seen one of these away, rather than wait for its time-out."""
        look = self.observer.watched()
        for part in parts:
            if part in look.troubles:
                raise Away(part, look.troubles[part])

    def close(self) -> None:
        self.ending.set()
        self.observer.close()
        if self._codec is not None:
            self._codec.close()


class _Seats:
    """A number of places that are given out and back on one event loop."""

    def __init__(self, most: int) -> None:
        self._free = most

    @contextmanager
    def taken(self) -> Iterator[None]:
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    def require(self) -> None:
        """Raise a 503 problem where none is free."""
        if self._free <= 0:
            raise Problem(
                503,
                "Too many watch",
                "Close a page that watches, then try again.",
                headers={"Retry-After": "10"},
            )


def console(request: Request) -> Console:
    """The console that this request asks."""
    found = request.app.state.console
    assert isinstance(found, Console)
    return found


def install(app: FastAPI, settings: Settings, pipelines: Pipelines) -> Console:
    """Make the console of `app`; `lifespan` closes it."""
    made = app.state.console = Console(settings, pipelines, app.state.ending)
    return made


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """For the application's own lifespan."""
    try:
        yield
    finally:
        await anyio.to_thread.run_sync(app.state.console.close)


# Pages


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        moment=words.moment, span=words.span, rate=words.rate, number=words.number, of_ms=words.of_ms
    )
    environment.globals.update(NONE=words.NONE, counted=words.counted, money=words.money, static=static)
    return environment


@cache
def static(name: str) -> str:
    """The address of a file of ours, which changes with its content: it may be kept for ever."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
    return f"/console/static/{name}?v={digest}"


def render(name: str, /, **values: Any) -> str:
    """A template as text."""
    return _templates().get_template(name).render(values)


def page(request: Request, template: str, /, status: int = 200, **values: Any) -> HTMLResponse:
    """A page of the console, with the navigation and what is known of the parts around it."""
    observer = console(request).observer
    who: Principal | None = getattr(request.state, "seen", None)
    runs = actions.may(who, "ops:read")
    # Who does not run the platform sets nothing in motion.
    look: Look = observer.watched() if runs else observer.latest
    parts = [(part, look.troubles.get(part)) for part in Part if runs and part is not Part.PROCESSES]
    html = render(
        template,
        look=look,
        parts=parts,
        path=request.url.path,
        who=who,
        may=partial(actions.may, who),
        pages=pages_of(who),
        **values,
    )
    return HTMLResponse(html, status)


def pages_of(who: Principal | None) -> list[Page]:
    """The pages that somebody may see, in the order of the navigation."""
    return [page for page in PAGES if actions.may(who, page.scope)]


def to(path: str) -> RedirectResponse:
    """See other: what a form was sent for has been done."""
    return RedirectResponse(path, 303)


class PageRoute(APIRoute):
    """A route that says who may ask for it, and answers errors with a page in place of a problem document."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        declared = any(hasattr(d.dependency, secured.DECLARED) for d in self.dependencies)
        if not declared and self.path not in secured.PUBLIC:
            raise Unsecured(f"{self.path} declares no scope; give its route dependencies=[needs(...)]")
        if self.body_field is not None:
            raise Unsecured(
                f"{self.path} has its body read before it is known who asks; let it await request.form()"
            )

        async def answered(request: Request) -> Response:
            try:
                response = await handled(request)
            except session.SignInFirst:
                return _sign_in_first(request)
            session.keep(request, response)
            return response

        async def handled(request: Request) -> Response:
            headers: Mapping[str, str] | None = None
            try:
                return await handle(request)
            except RequestValidationError as error:
                told = problems.invalid(error.errors())
                reasons = "; ".join(f"{field}: {reason}" for field, reason in told.errors)
                trouble = Trouble(f"{reasons}.", status=422)
            except HTTPException as error:
                trouble = Trouble(str(error.detail), status=error.status_code)
                headers = error.headers
            except session.SignInFirst:
                raise
            except Exception as error:
                known = trouble_of(error)
                if known is None:
                    raise
                log.info("a page is not there", extra={"path": request.url.path, "reason": str(error)})
                trouble = known
            answer = page(request, "trouble.html", trouble.status, trouble=trouble, active=None)
            answer.headers.update(headers or {})
            return answer

        return answered


def _sign_in_first(request: Request) -> Response:
    """To the form to sign in, and from there to the page that was asked for."""
    path, answer = request.url.path, None
    if path.startswith("/console/live/"):
        return page(request, "trouble.html", 401, trouble=Trouble("Sign in first.", status=401), active=None)
    if request.method in actions.SAFE:
        asked = f"{path}?{request.url.query}" if request.url.query else path
        if request.headers.get("sec-fetch-site") == "cross-site":
            # A link elsewhere led here, with which browsers send no such cookies: ask once more, from here.
            return HTMLResponse(render("again.html", address=asked))
        answer = to(f"/console/sign-in{query(next=session.safe(asked))}")
    else:
        answer = to("/console/sign-in?said=ended")
    session.forget(request, answer)
    return answer


def router() -> APIRouter:
    """A router of pages, none of which is part of the API's description."""
    # nosemgrep: router-without-scope -- PageRoute refuses a route without one
    return APIRouter(prefix="/console", route_class=PageRoute, include_in_schema=False)


def attempt(work: Callable[[], T]) -> tuple[T | None, Trouble | None]:
    """What `work` returns, or why it cannot now: for a page of which only a part is not there."""
    try:
        return work(), None
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None:
            raise
        return None, trouble


def query(**values: Any) -> str:
    """A query string of the values that are given, with its question mark."""
    given = {k: v for k, v in values.items() if v not in (None, "", False)}
    return f"?{urlencode(given)}" if given else ""


def texts(form: Mapping[str, Any]) -> dict[str, str]:
    """The text fields of a form that was sent."""
    return {k: v for k, v in form.items() if isinstance(v, str)}
