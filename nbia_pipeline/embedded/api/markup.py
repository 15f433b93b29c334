"""Write tables as XML and HTML, the two formats that the server has and nobody should ask for.

Server: element names are the column names, so that those with spaces or a leading digit make a document
that is not well-formed; a value that the encoder dislikes cuts the document short, still with status 200.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import pyarrow as pa

from nbia_pipeline.embedded.api.render import cells_of, spelling
from nbia_pipeline.schema.shapes import Form, Shape

_TYPES = {Form.NUMBER: "java.lang.Integer", Form.BOOLEAN: "java.lang.Boolean"}
_DISLIKED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def render_xml(table: pa.Table, shape: Shape, guide: bool = False) -> bytes:
    """Return ``<Results><Row><COL type='...'>value</COL>...</Row></Results>``; nulls are omitted."""
    names = [(spelling(key, guide), _TYPES.get(key.form, "java.lang.String")) for key in shape.keys]
    pieces = ["<Results>"]
    for row in cells_of(table, shape):
        pieces.append("<Row>")
        for (name, kind), text in zip(names, row, strict=True):
            if text is None:
                continue
            if _DISLIKED.search(text):
                return "".join(pieces).encode()
            pieces.append(f"<{name} type='{kind}'>{html.escape(text)}</{name}>")
        pieces.append("</Row>")
    return "".join([*pieces, "</Results>"]).encode()


def render_html(table: pa.Table, shape: Shape, guide: bool = False) -> bytes:
    """Return one bordered table."""
    heads = "".join(f"<th>{html.escape(spelling(key, guide))}</th>" for key in shape.keys)
    pieces = [f"<html><body><table border='1'><tr>{heads}</tr>"]
    for line in _html_lines(table, shape):
        if line is None:
            return "".join(pieces).encode()
        pieces.append(line)
    return "".join([*pieces, "</table></body></html>"]).encode()


def _html_lines(table: pa.Table, shape: Shape) -> Iterator[str | None]:
    """Yield one line per row; None where the document ends early."""
    for row in cells_of(table, shape):
        if any(text is not None and _DISLIKED.search(text) for text in row):
            yield None
        yield "<tr>" + "".join(f"<td>{html.escape(text or '')}</td>" for text in row) + "</tr>"
