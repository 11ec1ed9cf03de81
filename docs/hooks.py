"""Pages that MkDocs builds from the code: the configuration and the command line, so that no text is kept twice."""

import re
from pathlib import Path
from typing import Any

import typer
import typer.cli
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from nested_reft.cli import app

ROOT = Path(__file__).parent.parent


def configuration_page() -> str:
    """Return config/README.md, which `nested-reft schema` writes from the configuration's models."""
    return re.sub(r"<!--.*?-->\n", "", (ROOT / "config/README.md").read_text(), count=1)


def command_line_page() -> str:
    """Return the help of every sub-command as Markdown."""
    command = typer.main.get_command(app)
    text = typer.cli.get_docs_for_click(
        obj=command, ctx=typer.Context(command, info_name="nested-reft"), name="nested-reft"
    )
    # Without the lists of sub-commands: their texts are cut off, and the page has a section for each.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)
    return text.replace("# `nested-reft`", "# Command line", 1)


def on_files(files: Files, config: MkDocsConfig, **kwargs: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    files.append(File.generated(config, "reference/cli.md", content=command_line_page()))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Leave the tables of the example reports out of the search index, and give each a heading."""
    if not page.file.src_uri.startswith("reports/"):
        return markdown
    page.meta["search"] = {"exclude": True}
    return f"# {page.file.src_uri.removesuffix('.md')}\n\n{markdown}"
