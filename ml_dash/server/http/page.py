"""A plain HTML page: projects and experiments, with links to their data. No script, everything escaped."""

from __future__ import annotations

from html import escape
from typing import Any, Final
from urllib.parse import quote, urlencode

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2024; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .8rem .3rem 0; }
th { border-bottom: 1px solid #aab; } td { border-bottom: 1px solid #e4e6ea; } td.n { text-align: right; }
a { color: #0b5cad; } .dim { color: #667; } input { font: inherit; padding: .2rem .4rem; min-width: 22rem; }
@media (prefers-color-scheme: dark) { body { background: #15181c; color: #dde; } a { color: #7db7f5; }
td { border-color: #2c313a; } }
"""


def experiments_page(
    user: str, namespace: str, projects: list[dict[str, Any]], listing: dict[str, Any], project: str | None
) -> str:
    """Return the HTML of the list: projects, and a page of experiments, of all projects or of one."""
    links = " · ".join(
        f'<a href="/?{_query(namespace, user, project=p["name"])}">{escape(p["name"])}</a> '
        f'<span class="dim">{p["experiments"]:,}</span>'
        for p in projects
    )
    rows = "".join(_row(experiment, namespace, user) for experiment in listing["experiments"])
    head = "".join(f"<th>{name}</th>" for name in ("experiment", "status", "points", "updated", "data"))
    title = escape(project) if project is not None else "All projects"
    more = ""
    if listing["next"] is not None:
        query = _query(namespace, user, project=project, after=listing["next"])
        more = f'<p><a href="/?{query}">older experiments</a></p>'
    whole = '<a href="/">all</a> · ' if project is not None else ""
    body = (
        f"<h1>{title}</h1><p>{whole}{links or 'no project yet'}</p>"
        f"<p class=dim>{listing['total']:,} experiment{'' if listing['total'] == 1 else 's'} of {escape(namespace)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"
        f'<form method="post" action="/logout"><p class="dim">logged in as {escape(user)} '
        "<button>log out</button></p></form>"
    )
    return _document(title, body)


def _row(experiment: dict[str, Any], namespace: str, user: str) -> str:
    path, query = f"/experiments/{quote(experiment['id'])}", _query(namespace, user)
    tail = f"?{query}" if query else ""
    links = " ".join(f'<a href="{path}/{name}{tail}">{name}</a>' for name in ("parameters", "metrics", "logs", "files"))
    name = escape(f"{experiment['project']}/{experiment['name']}")
    points = experiment["counts"].get("points", 0)
    return (
        f'<tr><td><a href="{path}{tail}">{name}</a></td><td>{escape(experiment["status"])}</td>'
        f'<td class="n">{points:,}</td><td>{escape(experiment["updatedAt"][:19])}</td><td>{links}</td></tr>'
    )


def login_page(development: bool, refused: str | None = None) -> str:
    """Return the HTML of the login form; `development` adds a field for a user's name, `refused` says why it failed."""
    form = (
        '<form method="post" action="/login"><p><label>Token<br>'
        '<input name="token" type="password" autocomplete="current-password" required></label> '
        "<button>log in</button></p></form>"
    )
    if development:
        form += (
            '<form method="post" action="/login"><p><label>or, on this machine, any user name<br>'
            '<input name="user" required></label> <button>look</button></p></form>'
        )
    hint = '<p class="dim">The server\'s owner makes tokens: <code>ml-dash server token create USER</code></p>'
    why = f'<p role="alert">{escape(refused[:1].upper() + refused[1:])}.</p>' if refused else ""
    return _document("Log in", f"<h1>ml-dash</h1>{why}{form}{hint}")


def _query(namespace: str, user: str, **more: str | None) -> str:
    given = {name: value for name, value in more.items() if value is not None}
    if namespace != user:
        given["namespace"] = namespace
    return escape(urlencode(given))


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} - ml-dash</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )
