"""A page to try a model in the browser: ``python -m vmamba.demo --weights best.pth``, then open the printed address."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error
from vmamba.gradient_pictures import class_gradient, overlay, receptive_field, seen_by
from vmamba.image_model import ImageModel, open_model

CLASS, FIELD = "What the answer depends on", "Receptive field of the centre"
_REMEDY = "the demo page needs Gradio; install it with: pip install 'vmamba[demo]'"


def answer(opened: ImageModel, picture: Image.Image | None, kind: str, top_k: int) -> tuple[dict[str, float], Any]:
    """Return {class name: probability} and the gradient picture of an uploaded image; nothing for none."""
    if picture is None:
        return {}, None
    x = opened.read(picture)[None].to(opened.device)
    strength = (receptive_field if kind == FIELD else class_gradient)(opened.network, x)
    shown = seen_by(opened.transform, picture.convert(opened.mode), (x.shape[2], x.shape[3]))
    return dict(opened.classify(picture, top_k)), overlay(shown, strength)


def build_page(opened: ImageModel, title: str, top_k: int = 5) -> Any:
    """Return the page as a ``gradio.Blocks``; `UserError` says how to install Gradio where it is absent."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError:
        raise UserError(_REMEDY) from None

    def on_submit(picture: Image.Image | None, kind: str) -> tuple[dict[str, float], Any]:
        if picture is None:
            raise gradio.Error("Choose an image first.", print_exception=False)
        return answer(opened, picture, kind, top_k)

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}\nUpload an image: the likeliest classes, and where in the image they come from.")
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(type="pil", label="Image", sources=["upload", "clipboard"])
                kind = gradio.Radio([CLASS, FIELD], value=CLASS, label="Picture")
                button = gradio.Button("Classify", variant="primary", elem_id="classify")
            with gradio.Column():
                label = gradio.Label(num_top_classes=top_k, label="Classes", elem_id="classes")
                map_ = gradio.Image(type="pil", label="Gradient", elem_id="gradient", interactive=False)
        button.click(on_submit, [picture, kind], [label, map_], api_name="classify")
    return page


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.demo", description=__doc__)
    parser.add_argument("--model", metavar="NAME", help="a model of this package; alone: with its released weights")
    parser.add_argument("--weights", type=Path, help="a checkpoint; alone: one of the trainer, such as best.pth")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes to show (default 5)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to serve at (default 7860)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default): a GPU when there is one")
    arguments = parser.parse(argv)
    if arguments.topk < 1:
        raise UserError(f"--topk {arguments.topk}: give at least 1")
    if not 0 < arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: give a port from 1 to 65535")
    opened = open_model(arguments.model, arguments.weights, arguments.device)
    title = f"VMamba: {arguments.model or arguments.weights.name}"
    page = build_page(opened, title, arguments.topk)
    try:
        page.launch(server_name=arguments.host, server_port=arguments.port, quiet=False, share=False)
    except OSError as error:
        raise UserError(f"--port {arguments.port}: cannot serve at {arguments.host} ({error}); give another") from None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
