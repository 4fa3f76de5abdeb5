"""The visitor of a page: a key that a browser tab creates and keeps when it is reloaded, and the time zone."""

from __future__ import annotations

import gradio as gr

KEY = """() => {
  let key = sessionStorage.getItem("specstream-visitor");
  if (!key) {
    key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("specstream-visitor", key);
  }
  return key;
}"""
ZONE = "() => Intl.DateTimeFormat().resolvedOptions().timeZone"


def layout() -> gr.Textbox:
    """A hidden field that holds the key; empty until the browser has filled it in."""
    return gr.Textbox(visible=False)


def wire(key: gr.Textbox, demo: gr.Blocks) -> None:
    """Fill the field in when the page is loaded."""
    demo.load(None, None, key, js=KEY, api_visibility="private")


def name(key: str | None, request: gr.Request) -> str:
    """The visitor: the tab's key, or gradio's session if there is none."""
    return key or str(request.session_hash)
