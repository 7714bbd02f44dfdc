"""Which generation a table's name stands for.

A table starts as a plain table in schema `public`. The first swap moves it to schema `live` and puts a view
of its name in its place; each swap then lets the view read another table and writes down which, in one
transaction. Views of analysts and the API's queries read through the name and follow by themselves. The
sink finds the table itself by its search path (`sink_url`), as it does in the schema of a replay (`run_url`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from psycopg import sql

from infra.postgres import Connection

LIVE = "live"
PUBLIC = "public"
INVOKER = sql.SQL("WITH (security_invoker = true)")
"""Views ask in the name of whoever reads them: in their owner's they would pass row-level security."""


def run_schema(run_id: int) -> str:
    """The schema of a replay's own tables, positions and state."""
    return f"replay_{run_id}"


def retired_schema(run_id: int) -> str:
    """Where a swap leaves the tables that it took out of force."""
    return f"retired_{run_id}"


def sink_url(database_url: str) -> str:
    """The database as a sink sees it: the tables in force, not their views."""
    return _with_path(database_url, LIVE, PUBLIC)


def run_url(database_url: str, run_id: int, *, in_place: bool) -> str:
    """The database as a replay sees it: its own tables where it has some."""
    others = (LIVE, PUBLIC) if in_place else (PUBLIC,)
    return _with_path(database_url, run_schema(run_id), *others)


def _with_path(database_url: str, *schemas: str) -> str:
    separator = "&" if "?" in database_url else "?"
    return f"{database_url}{separator}options={quote('-csearch_path=' + ','.join(schemas))}"


def home(connection: Connection, name: str) -> str:
    """The schema that the table in force lies in. Raises LookupError where there is no such table."""
    row = connection.execute(
        "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relname = %s AND n.nspname IN (%s, %s) AND c.relkind IN ('r', 'p')",
        (name, LIVE, PUBLIC),
    ).fetchone()
    if row is None:
        raise LookupError(f"there is no table {name}; `millrace up` creates it")
    return str(row[0])


def columns(connection: Connection, schema: str, name: str) -> list[tuple[str, str]]:
    """A table's columns in order: name and type."""
    return [
        (str(column), str(kind))
        for column, kind in connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (f'"{schema}"."{name}"',),
        )
    ]


def same_columns(connection: Connection, name: str, schema: str) -> bool:
    """Whether the table in force still has the columns of its counterpart in `schema`."""
    return sorted(columns(connection, home(connection, name), name)) == sorted(
        columns(connection, schema, name)
    )


def create_like(connection: Connection, name: str, schema: str) -> None:
    """Create an empty table of the same name, columns, keys, checks and grants in `schema`; without its
    triggers and policies (`point_to` puts it behind row-level security)."""
    source = sql.Identifier(home(connection, name), name)
    target = sql.Identifier(schema, name)
    text = source.as_string(connection)
    row = connection.execute(
        "SELECT pg_get_partkeydef(to_regclass(%s)), t.time, t.width, coalesce(t.hypertable, false)"
        " FROM (SELECT 1) one LEFT JOIN time_tables t ON t.name = %s",
        (text, name),
    ).fetchone()
    assert row is not None
    key, time, width, hypertable = row
    partitioned = sql.SQL(" PARTITION BY " + str(key) if key else "")
    connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL){}").format(target, source, partitioned)
    )
    granted = connection.execute(
        "SELECT a.grantee::regrole::text, string_agg(a.privilege_type, ', ')"
        " FROM pg_class c, aclexplode(c.relacl) a"
        " WHERE c.oid = to_regclass(%s) AND a.grantee NOT IN (0, c.relowner) GROUP BY 1",
        (text,),
    ).fetchall()
    for role, privileges in granted:
        connection.execute(sql.SQL(f"GRANT {privileges} ON {{}} TO {role}").format(target))
    if hypertable:
        connection.execute(
            "SELECT create_hypertable(%s::regclass, %s::name, chunk_time_interval => %s::interval,"
            " create_default_indexes => false)",
            (target.as_string(connection), time, width),
        )


def point_to(connection: Connection, name: str, run_id: int) -> None:
    """Let `name` stand for the run's table from this transaction on; the one in force is retired.

    Only within a transaction. It waits for whoever reads the table or a view of it, and makes them wait.
    """
    if home(connection, name) == PUBLIC:
        _fold(connection, name)
    _move(connection, name, LIVE, retired_schema(run_id))
    _move(connection, name, run_schema(run_id), LIVE)
    _protect(connection, LIVE, name)
    connection.execute(
        "INSERT INTO generations (name, generation) VALUES (%s, %s) ON CONFLICT (name)"
        " DO UPDATE SET generation = excluded.generation, switched_at = now()",
        (name, run_id),
    )
    _read_through_pointer(connection, name, run_id)


@contextmanager
def unfolded(connection: Connection) -> Iterator[None]:
    """Swapped tables as plain tables in `public` again, for a migration to change; then as they were.

    Only within a transaction, so that nobody else sees it.
    """
    swapped: list[tuple[str, int]] = []
    if connection.execute("SELECT to_regclass('public.generations')").fetchone() != (None,):
        swapped = [
            (str(name), int(str(generation)))
            for name, generation in connection.execute(
                "SELECT name, generation FROM generations ORDER BY name"
            )
        ]
    for name, _ in swapped:
        _unfold(connection, name)
    yield
    for name, generation in swapped:
        _fold(connection, name)
        _read_through_pointer(connection, name, generation)


@dataclass(frozen=True)
class _View:
    """A view that reads a table, and how it is defined by names."""

    identifier: sql.Identifier
    definition: sql.SQL


def _views_of(connection: Connection, name: str) -> list[_View]:
    """The views that read public's `name` themselves, defined in terms of the name."""
    # Definitions name tables without a schema exactly where the search path finds them.
    connection.execute("SET LOCAL search_path TO public")
    return [
        _View(
            sql.Identifier(str(schema), str(view)),
            sql.SQL(str(definition).rstrip().rstrip(";")),
        )
        for schema, view, definition in connection.execute(
            "SELECT DISTINCT n.nspname, v.relname, pg_get_viewdef(v.oid) FROM pg_depend d"
            " JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass"
            " JOIN pg_class v ON v.oid = r.ev_class JOIN pg_namespace n ON n.oid = v.relnamespace"
            " WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(%s)"
            " AND v.oid <> d.refobjid",
            (f'public."{name}"',),
        )
    ]


def _bind_anew(connection: Connection, views: Iterable[_View]) -> None:
    """Let views read what their names mean now."""
    for view in views:
        connection.execute(
            sql.SQL("CREATE OR REPLACE VIEW {} {} AS {}").format(view.identifier, INVOKER, view.definition)
        )


def _fold(connection: Connection, name: str) -> None:
    """From a plain table to a view of its name, which reads the table in schema `live`."""
    views = _views_of(connection, name)
    _move(connection, name, PUBLIC, LIVE)
    _create_view(connection, name, sql.SQL("true"))
    _copy_comments(connection, name)
    _bind_anew(connection, views)


def _unfold(connection: Connection, name: str) -> None:
    """The way back."""
    views = _views_of(connection, name)
    aside = sql.Identifier(f"{name}__view")
    connection.execute(sql.SQL("ALTER VIEW public.{} RENAME TO {}").format(sql.Identifier(name), aside))
    _move(connection, name, LIVE, PUBLIC)
    _bind_anew(connection, views)
    connection.execute(sql.SQL("DROP VIEW public.{}").format(aside))


def _read_through_pointer(connection: Connection, name: str, generation: int) -> None:
    _create_view(
        connection,
        name,
        sql.SQL("public.millrace_reads({}, {})").format(sql.Literal(name), sql.Literal(generation)),
    )


def _create_view(connection: Connection, name: str, condition: sql.Composable) -> None:
    listed = sql.SQL(", ").join(sql.Identifier(c) for c, _ in columns(connection, LIVE, name))
    connection.execute(
        sql.SQL("CREATE OR REPLACE VIEW public.{} {} AS SELECT {} FROM {} WHERE {}").format(
            sql.Identifier(name), INVOKER, listed, sql.Identifier(LIVE, name), condition
        )
    )
    _protect(connection, PUBLIC, name)


def _protect(connection: Connection, schema: str, name: str) -> None:
    """Put a table, or a view of its name, behind row-level security, where that is there already."""
    if connection.execute("SELECT to_regproc('public.millrace_protect')").fetchone() != (None,):
        connection.execute("SELECT public.millrace_protect(%s, %s)", (schema, name))


def _copy_comments(connection: Connection, name: str) -> None:
    """The table's and columns' comments, for analysts to find them at the view."""
    for column, comment in connection.execute(
        "SELECT a.attname, d.description FROM pg_description d"
        " LEFT JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0"
        " WHERE d.classoid = 'pg_class'::regclass AND d.objoid = to_regclass(%s)",
        (f'{LIVE}."{name}"',),
    ).fetchall():
        target = sql.SQL("VIEW public.{}").format(sql.Identifier(name))
        if column is not None:
            target = sql.SQL("COLUMN public.{}.{}").format(sql.Identifier(name), sql.Identifier(str(column)))
        connection.execute(sql.SQL("COMMENT ON {} IS {}").format(target, sql.Literal(str(comment))))


def _move(connection: Connection, name: str, source: str, target: str) -> None:
    """Move a table with its native partitions to another schema."""
    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(target)))
    parts = connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass(%s) AND c.relnamespace = %s::regnamespace",
        (f'"{source}"."{name}"', source),
    ).fetchall()
    for one in (name, *(str(part) for (part,) in parts)):
        connection.execute(
            sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(
                sql.Identifier(source, one), sql.Identifier(target)
            )
        )
