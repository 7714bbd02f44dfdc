"""A client generated from the published description: complete, typed, and it reads what the API has."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.postgres import connect
from infra.settings import Settings
from schemas.pipelines import PIPELINES
from tests.authorisation.matrix import ASKED, RECEIVERS
from tests.authorisation.rows import NOBODYS, OWNERS, Owner, fill
from tests.console.serving import serving
from tests.signed_in import key_of, signed_in

PUBLISHED = Path(__file__).parents[2] / "docs" / "openapi.json"
PACKAGE = "millrace_client"
OWNER = OWNERS[0]

WELL = """
from millrace_client import AuthenticatedClient
from millrace_client.api.orders import order, orders_of_customer
from millrace_client.models.order import Order
from millrace_client.models.order_status import OrderStatus
from millrace_client.models.page_order_summary import PageOrderSummary

def owed(client: AuthenticatedClient, customer: str) -> int:
    page = orders_of_customer.sync(customer, client=client, limit=10)
    assert isinstance(page, PageOrderSummary)
    found = [order.sync(item.order_id, client=client) for item in page.items]
    return sum(o.total_minor for o in found if isinstance(o, Order) and o.status == OrderStatus.CONFIRMED)
"""
"""A program that uses the client as it should be used."""
WRONG = (
    ("order.sync(item.order_id", "order.sync(7", "arg-type"),
    ("o.total_minor", "o.total", "attr-defined"),
    ("limit=10", 'limit="ten"', "arg-type"),
)
"""By what of it is written wrongly, and how: what the type checker calls it."""


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the generated package; it can be imported."""
    folder = tmp_path_factory.mktemp("client")
    # A picture has no type of its own.
    config = {"content_type_overrides": {"image/png": "application/octet-stream"}, "post_hooks": []}
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    options = ["--path", PUBLISHED, "--config", folder / "config.json", "--output-path", folder / PACKAGE]
    run = subprocess.run([*command, *options, "--meta", "none"], capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def checked(folder: Path, program: str) -> str:
    """What mypy says of a program that uses the client."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports", "silent"]
    # Run where no settings of ours are found.
    run = subprocess.run([*command, "program.py"], capture_output=True, text=True, cwd=folder)
    assert run.returncode in (0, 1), run.stderr
    return run.stdout


def test_a_program_is_held_to_the_types(generated: Path) -> None:
    """What is right passes mypy --strict; a wrong argument, and a field that there is not, are found."""
    assert "Success" in checked(generated, WELL)
    program = WELL
    for right, wrong, _ in WRONG:
        assert right in program
        program = program.replace(right, wrong)
    found = checked(generated, program)
    for *_, error in WRONG:
        assert f"[{error}]" in found, found


@pytest.fixture(scope="module")
def served(database: Settings) -> Iterator[httpx.Client]:
    """The API with rows of two tenants, asked by an operator of one."""
    signed_in(database)
    with connect(database.database_url) as connection:
        fill(database, connection)
    headers = key_of(database, "typed", OWNER.tenant, ["operator"])
    with pytest.MonkeyPatch.context() as patch, serving(database, PIPELINES, patch, headers) as client:
        yield client


@contextmanager
def client_of(http: httpx.Client, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
    """A generated client with the proof that these headers bring, by default that of `http`."""
    [(name, proof)] = (headers or {"X-API-Key": http.headers["X-API-Key"]}).items()
    prefix, _, token = proof.rpartition(" ")
    made = importlib.import_module(PACKAGE).AuthenticatedClient(
        base_url=str(http.base_url),
        token=token,
        prefix=prefix,
        auth_header_name=name,
        httpx_args={"trust_env": False},
    )
    with made as client:
        yield client


def operation(path: str) -> Any:
    """The generated module of an operation that reads."""
    described = json.loads(PUBLISHED.read_text())["paths"][path]["get"]
    return importlib.import_module(f"{PACKAGE}.api.{described['tags'][0]}.{described['operationId']}")


TRIED = [(path, n) for path, asks in ASKED.items() for n in range(len(asks)) if not asks[n].query]


@pytest.mark.parametrize(("path", "n"), TRIED, ids=[path for path, _ in TRIED])
def test_every_route_is_read_with_its_types(generated: Path, served: httpx.Client, path: str, n: int) -> None:
    """The client's answer is the API's own, field by field, with nothing that it does not know."""
    ask = ASKED[path][n]
    values = ask.values(Owner(OWNER.tenant, NOBODYS) if ask.nobodys else OWNER) if ask.values else {}
    typed = {name: int(value) if name in ("partition", "offset") else value for name, value in values.items()}
    with client_of(served, RECEIVERS[0].headers if "webhooks" in path else None) as client:
        answer = operation(path).sync_detailed(**typed, client=client)
    assert answer.status_code == 200, answer.content
    if answer.headers["content-type"] != "application/json":
        assert answer.content  # of DICOM: a type that is not ours
        return
    raw = json.loads(answer.content)
    parsed, bodies = (answer.parsed, raw) if isinstance(raw, list) else ([answer.parsed], [raw])
    for one, body in zip(parsed, bodies, strict=True):
        assert type(one).__name__ != "ProblemDocument"
        assert one.to_dict().keys() == body.keys() and not one.additional_properties
        assert type(one).from_dict(one.to_dict()) == one == type(one).from_dict(body)


def test_refusals_are_problem_documents(generated: Path, served: httpx.Client) -> None:
    """What is not there, and who is not known, come as the typed problem that the description promises."""
    order = operation("/v1/orders/{order_id}")
    for headers, status in ((None, 404), ({"X-API-Key": "mk_nobody"}, 401)):
        with client_of(served, headers) as client:
            problem = order.sync("none", client=client)
        assert (type(problem).__name__, problem.status) == ("ProblemDocument", status)


def test_pages_and_tags_work_by_the_client(generated: Path, served: httpx.Client) -> None:
    """A cursor leads on to the rest, and what the client has is not sent again."""
    trucks, truck = operation("/v1/trucks"), operation("/v1/trucks/{truck_id}")
    with client_of(served) as client:
        first = trucks.sync(client=client, limit=1)
        second = trucks.sync(client=client, limit=1, cursor=first.next_cursor)
        name = first.items[0].truck_id
        tag = truck.sync_detailed(name, client=client).headers["etag"]
        again = truck.sync_detailed(name, client=client, if_none_match=tag)
    assert name != second.items[0].truck_id and second.next_cursor is None
    assert (again.status_code, again.content) == (304, b"")


def test_graphql_is_asked_by_the_client(generated: Path, served: httpx.Client) -> None:
    """A query with its variables, answered in its own shape."""
    question = importlib.import_module(f"{PACKAGE}.models.question").Question.from_dict(
        {
            "query": "query ($id: String!) { order(orderId: $id) { orderId } }",
            "variables": {"id": f"{OWNER}-order"},
        }
    )
    ask = importlib.import_module(f"{PACKAGE}.api.graphql.ask")
    with client_of(served) as client:
        answer = ask.sync(client=client, body=question)
    assert answer.data.to_dict() == {"order": {"orderId": f"{OWNER}-order"}}
