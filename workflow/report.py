"""One page that can be sent and read offline: the gallery, every summary as it was executed, and all records.

nbconvert makes it of one notebook that is put together here. Equations become MathML, which browsers draw themselves;
figures, styles and the table's script lie in the page, which asks for nothing beside it.
"""

import base64
import io
import os
import re
import time
from datetime import datetime

import itables
import nbformat
import pandas as pd
from itables.javascript import generate_init_offline_itables_html
from jinja2 import DictLoader, pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

from lib import disk, drawing, runs
from workflow.plan import ROOT, executed

# nbconvert's own page without the scripts that it would load from the net.
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>
main { max-width: 62rem; margin: auto; } main img { display: block; max-width: 100%; }
#all_records { width: 100% !important; } #all_records col { width: auto !important; }
#all_records :is(td, th) { text-align: left !important; } #all_records td { overflow-wrap: anywhere; }
</style>{%- endblock -%}"""
LAYOUT = {"topStart": "search", "topEnd": "pageLength", "bottomStart": "info", "bottomEnd": "paging"}
TABLE = {
    "maxBytes": 0,
    "lengthMenu": [25, 100, 1000],
    "classes": "display compact",
    "connected": False,
    "layout": LAYOUT,
}


class _Renderer(IPythonRenderer):
    """Markdown as HTML, its equations as MathML."""

    def block_math(self, body):
        return convert(body, display="block")

    def inline_math(self, body):
        return convert(body)


class _Page(HTMLExporter):
    """nbconvert's exporter of a notebook without its code, whose Markdown finds images in the figures folder."""

    @pass_context
    def markdown2html(self, context, source):
        renderer = _Renderer(escape=False, embed_images=True, path=str(drawing.folder()))
        return MarkdownWithMath(renderer=renderer).render(source)


def write(plan):
    """Return the page of a `Plan`, `index.html` in its folder for reports, once it is written."""
    told = {name: _summary(name) for name in plan.summaries}
    studies = [name.removeprefix("summary_") for name in plan.summaries]
    parts = {study: drawing.folder() / f"{study}.md" for study in studies}
    gallery = {study: path.read_text("utf-8") for study, path in parts.items() if path.exists()}
    cells = [_text(_contents(plan, gallery, told))]
    cells += [_text(f'<a id="{study}"></a>\n\n{part}') for study, part in gallery.items()]
    for name, found in told.items():
        cells += [_text(f'<a id="{name}"></a>\n\n---'), *found] if found else []
    cells += [
        _text(f'<a id="records"></a>\n\n---\n\n# Records\n\nEvery run that is done, one row each. {TOOK}'),
        _records(plan),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"title": "The pruning laboratory"})
    exporter = _Page(extra_loaders=[DictLoader({"report": TEMPLATE})], template_file="report", exclude_input=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    page, _ = exporter.from_notebook_node(notebook)
    plan.report.parent.mkdir(parents=True, exist_ok=True)
    disk.put(plan.report, re.sub("data:image/png;base64,([A-Za-z0-9+/=]+)", _packed, page).encode())
    return plan.report


def _packed(found):
    """Return the address of an image as WebP without loss, two fifths of a PNG: mail takes no more than 25 MB."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(found[1]))).save(stream, "webp", lossless=True, exact=True, method=2)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _text(source):
    return nbformat.v4.new_markdown_cell(source)


def _contents(plan, gallery, told):
    """Return the head of the page: when it was made, of what, and the way to everything."""
    of = os.path.relpath(runs.folder(), ROOT)
    made = f"Made on {time.strftime('%Y-%m-%d %H:%M')} of the records in `{of}`, profile {plan.profile}."
    lines = ["# The pruning laboratory", made, "[All records](#records)"]
    lines += ["**What came out**", _links(gallery)] if gallery else []
    shown = {name: found[0].source for name, found in told.items() if found}
    lines += ["**How it was found**", _links(shown)] if shown else []
    absent = [name for name in told if name not in shown]
    lines += (
        [f"Not here, because it was not executed, or has no record to show: {', '.join(absent)}."] if absent else []
    )
    return "\n\n".join(lines)


def _links(texts):
    """Return a list of links to the anchors of these texts, by their titles."""
    titles = {anchor: re.search("^#+ (.*)", text, re.MULTILINE) for anchor, text in texts.items()}
    return "\n".join(f"- [{title[1] if title else anchor}](#{anchor})" for anchor, title in titles.items())


def _summary(name):
    """Return the cells of an executed summary; none of one that was not executed, or ended in an error.

    Left out: what goes to standard error, and the part of the gallery, which the page has already.
    """
    if not executed(name).exists():
        return []
    cells = nbformat.read(executed(name), as_version=4).cells
    if any(output.output_type == "error" for cell in cells for output in cell.get("outputs", ())):
        return []
    for cell in cells:
        cell.id = f"{name}-{cell.id}"
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _shown(output)]
    return [cell for cell in cells if cell.cell_type == "markdown" or cell.get("outputs")]


def _shown(output):
    return output.get("name") != "stderr" and "text/markdown" not in output.get("data", ())


def _records(plan):
    """Return a cell that shows the table of all records, to be searched and sorted."""
    names = sorted({one.experiment for one in plan.executions.values()})
    frame = pd.DataFrame([_row(record) for name in names for record in runs.records(name)], columns=COLUMNS)
    script = generate_init_offline_itables_html(itables.options.dt_bundle)
    table = itables.to_html_datatable(frame, showIndex=False, table_id="all_records", **TABLE)
    output = nbformat.v4.new_output("display_data", {"text/html": script + table})
    return nbformat.v4.new_code_cell("", outputs=[output])


TOOK = "Seconds are of the training, or else of the execution that made it, with all runs of its stack."
COLUMNS = ["experiment", "type", "seed", "what differs from the defaults", "scores", "seconds", "made"]


def _row(record):
    differs = re.sub("^[^;]*;?", "", record.name).replace(";", "; ")
    scores = "; ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.scores.items())
    began, made = (datetime.fromisoformat(record.provenance[name]) for name in ("started", "finished"))
    took = record.provenance["seconds"] or (made - began).total_seconds()  # of training alone, where it is known
    return [record.experiment, record.type, record.seed, differs, scores, round(took, 1), f"{made:%Y-%m-%d}"]
