"""The one Jinja environment: line formats only; JSON and YAML are serialised."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Escaping for HTML would corrupt these formats, none of which is HTML.
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    autoescape=False,  # noqa: S701
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: object) -> str:
    """Render a file of `templates/`.

    Parameters:
        template: name with its real extension, e.g. wg0.conf for templates/wg0.conf.j2.
        values: everything the template names.

    Raises:
        jinja2.UndefinedError: when a value is missing.
    """
    return _ENVIRONMENT.get_template(f"{template}.j2").render(values)
