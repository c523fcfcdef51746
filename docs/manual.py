"""Hooks of mkdocs for the manual (mkdocs.yml): pages that lie elsewhere in the repository, links between all of them, and the reference of
the command line, which is written from its parsers."""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from lolrt.cli import parser

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "lolrt/_embedded/tiny/README.md": "tiny.md",
}
LINK = re.compile(r"\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")

places: dict[str, str] = {}
"""Where on the site a file of the repository is."""


def on_files(files: Files, config: Any) -> Files:
    for origin, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text()))
    files.append(File.generated(config, "cli.md", content=command_line()))
    places.update({f"docs/{file.src_uri}": file.src_uri for file in files} | PAGES)
    for file in files.documentation_pages():
        for _, target, _ in LINK.findall(file.content_string):
            path = _linked(file.src_uri, target)
            if path not in places and (ROOT / path).is_file():  # code, or a picture beside a page that lies elsewhere
                places[path] = f"source/{path}"
                files.append(File.generated(config, places[path], abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    here = page.file.src_uri

    def on_site(link: re.Match[str]) -> str:
        text, target, anchor = link[1], _linked(here, link[2]), link[3] or ""
        if (ROOT / target).is_dir():  # the site has no lists of files
            return text
        if target not in places:  # mkdocs warns of it
            return link[0]
        return f"[{text}]({posixpath.relpath(places[target], posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(on_site, markdown)


def _linked(page: str, target: str) -> str:
    """The path in the repository that a link of a page means."""
    origins = {place: origin for origin, place in PAGES.items()}
    return posixpath.normpath(posixpath.join(posixpath.dirname(origins.get(page, f"docs/{page}")), target))


def command_line() -> str:
    """The page about all commands: their usage, and their options in tables."""
    return "\n\n".join(["# Command line", *_sections(parser())]) + "\n"


def _sections(of: argparse.ArgumentParser) -> Iterator[str]:
    formatter = of._get_formatter()
    yield f"## `{of.prog}`"
    if of.description:
        yield of.description
    yield f"```text\n{of.format_usage().removeprefix('usage: ').strip()}\n```"
    commands = []
    for group in of._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                listed = {choice.dest: choice.help for choice in action._get_subactions()}
                rows += [(f"[`{name}`](#{command.prog.replace(' ', '-')})", listed[name] or "") for name, command in action.choices.items()]
                commands += action.choices.values()
            else:
                rows.append((f"`{formatter._format_action_invocation(action)}`", formatter._expand_help(action)))
        if rows:
            title = f"*{group.title}*" + (f": {group.description}" if group.description else "")
            lines = [f"| {title} | |", "|---|---|", *(f"| {_cell(name)} | {_cell(told)} |" for name, told in rows)]
            yield "\n".join(lines)
    for command in commands:
        yield from _sections(command)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
