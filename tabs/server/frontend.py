"""Gradio's page in few files: the scripts and styles that this page needs, each kind as one, made of the files as installed.

Scripts: one text holds the source of every module. It makes a blob of each and an import map that leads the modules' own
addresses to them, so that a file which is not among them still finds the same modules. Styles: one stylesheet; links that load
nothing stand in for the single ones, which Vite's loader then takes as present. Where anything is not as known, or the browser
has no import maps, the files are loaded one by one as Gradio does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gradio

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
ENTRY = re.compile(rb'<script type="module" crossorigin src="\./assets/(index-[\w-]+\.js)"></script>')
STYLE = re.compile(rb'<link rel="stylesheet" crossorigin href="\./assets/(index-[\w-]+\.css)">')
IMPORT = re.compile(r"""((?:\bfrom|\bimport)\s*\(?\s*["'`])\./([\w.-]+\.js)(?=["'`])""")
STATIC = re.compile(r"""\b(?:from|import)\s*["']\./([\w.-]+\.js)["']""")
LISTED = re.compile(r"m\.f=(\[[^\]]*\])")  # Vite's list of what the dynamic imports of a file load
DYNAMIC = r"import\(`\./([\w.-]+)`\)[^\[]*?__vite__mapDeps\(\[([\d,]*)\]\)"
# A clock of Gradio's that is taken off the page while it counts, as the one of the loading page is, counts on in every frame of
# the screen for as long as the page is open. With these two it ends when its element is gone.
CLOCK = re.compile(
    r"(function (\w+)\(\)\{\w+\(\(\)=>\{\w+\(\w+,\(performance\.now\(\)-\w+\(\w+\)\)/1e3\),\w+)&&\2\(\)\}\)\}"
)
CLOCK_ELEMENT = re.compile(r"\{(\w+)&&\w+\(\)&&\(\w+\.status===`pending`")
# Gradio tells each output of each listener how far its answer is, and looks for each in the tree of all components: half a second
# of every switch of tabs. No listener here shows progress in its outputs, so none is registered for it.
PROGRESS = re.compile(r"register\((\w+),(\w+),(\w+),(\w+)\)\{(?=this\.fn_outputs\[\1\]=\2,this\.fn_inputs\[\1\]=\3)")
SCRIPT = """(() => {
  const base = new URL("./", document.currentScript.src).href, sources = %s, styles = %s;
  window.gradioAssets = base;
  const stub = (name, rel) => {
    const link = document.createElement("link");
    link.setAttribute("disabled", "");
    link.rel = rel;
    link.href = base + name;
    document.head.append(link);
  };
  for (const name of styles) stub(name, "stylesheet");
  const imports = {"gradio-assets/": base};
  if (HTMLScriptElement.supports?.("importmap"))
    for (const [name, source] of Object.entries(sources)) {
      const text = `${source}\\n//# sourceURL=${base}${name}`;
      const blob = URL.createObjectURL(new Blob([text], {type: "text/javascript"}));
      imports[base + name] = imports["gradio-assets/" + name] = blob;
      stub(name, "module-at-hand");
    }
  const map = document.createElement("script");
  map.type = "importmap";
  map.nonce = document.currentScript.nonce;
  map.textContent = JSON.stringify({imports});
  document.head.append(map);
})();"""


TAG = re.compile(rb"<script(?=[\s>])(?![^>]*\snonce=)")


def with_nonce(page: bytes, nonce: str) -> bytes:
    """The page's HTML with the nonce at each of its scripts, without which none runs (tabs/server/gate.py)."""
    return TAG.sub(b'<script nonce="%s"' % nonce.encode(), page)


@dataclass(frozen=True)
class Pack:
    """The two files, and what the page says of them."""

    files: dict[str, tuple[str, bytes]]  # name under /assets/: content type and content
    script: str = ""
    style: str = ""

    def into(self, page: bytes) -> bytes:
        """The page's HTML with the two files in place of its own entry."""
        entry, style = ENTRY.search(page), STYLE.search(page)
        if not self.script or not entry or not style:
            return page
        loads = f'<script src="./assets/{self.script}"></script><script type="module">import "./assets/'.encode()
        page = page.replace(entry.group(), loads + entry.group(1) + b'";</script>', 1)
        joined = f'<link rel="stylesheet" href="./assets/{self.style}">'.encode()  # after the first, as Gradio has them
        return page.replace(style.group(), style.group() + joined, 1)


@functools.lru_cache(maxsize=2)
def pack(kinds: frozenset[str], folder: Path = ASSETS) -> Pack:
    """What a page of these kinds of components needs; an empty pack where Gradio's files are not as known."""
    names = needed(kinds, folder)
    scripts = {name: _module(name, folder) for name in names if name.endswith(".js")}
    styles = {name: (folder / name).read_text("utf-8") for name in names if name.endswith(".css")}
    if not scripts or any("@import" in text or "@charset" in text for text in styles.values()):
        return Pack({})
    script = (SCRIPT % (json.dumps(scripts), json.dumps(list(styles)))).encode()
    style = "\n".join(styles.values()).encode()
    script_name, style_name = (f"page-{hashlib.sha256(each).hexdigest()[:10]}" for each in (script, style))
    files = {f"{script_name}.js": ("text/javascript", script), f"{style_name}.css": ("text/css", style)}
    return Pack(files, f"{script_name}.js", f"{style_name}.css")


def needed(kinds: Iterable[str], folder: Path) -> list[str]:
    """File names: the entry, what draws a page, each kind of component, and all that these import."""
    read = functools.cache(lambda name: (folder / name).read_text("utf-8"))
    entry = ENTRY.search((folder.parent / "index.html").read_bytes())
    style = STYLE.search((folder.parent / "index.html").read_bytes())
    if entry is None or style is None:
        return []
    first = entry.group(1).decode()
    found = {first: None} | dict.fromkeys(_listed(read(first)))
    for name in [name for name in found if name.endswith(".js")]:
        for drawn, deps in re.findall(DYNAMIC, read(name)):
            if drawn.startswith("Blocks-"):
                found |= dict.fromkeys([drawn, *_deps(read(name), deps)])
        for kind in sorted(kinds):
            if loads := re.search(
                rf"[,{{]{kind}:{{(?:(?!component:).)*component:\(\)=>.{{1,20}}?{DYNAMIC}", read(name)
            ):
                found |= dict.fromkeys([loads.group(1), *_deps(read(name), loads.group(2))])
    waiting = [name for name in found if name.endswith(".js")]
    while waiting:
        more = [name for name in STATIC.findall(read(waiting.pop())) if name not in found]
        found |= dict.fromkeys(more)
        waiting += more
    return [name for name in found if (folder / name).is_file()]


def _listed(source: str) -> list[str]:
    listed = LISTED.search(source)
    return [name.removeprefix("./") for name in json.loads(listed.group(1))] if listed else []


def _deps(source: str, numbers: str) -> list[str]:
    listed = _listed(source)
    return [listed[int(number)] for number in numbers.split(",") if number]


def _module(name: str, folder: Path) -> str:
    """A module that runs from anywhere: its imports are names of the import map, its own address is written out."""

    def named(found: re.Match[str]) -> str:
        there = (folder / found.group(2)).is_file()
        return f"{found.group(1)}gradio-assets/{found.group(2)}" if there else found.group()

    source = IMPORT.sub(named, (folder / name).read_text("utf-8"))
    if (clock := CLOCK_ELEMENT.search(source)) is not None:
        source = CLOCK.sub(rf"\1&&{clock.group(1)}&&\2()}})}}", source)
    source = PROGRESS.sub(r"\g<0>if(\4===`hidden`)\2=\3=[];", source)
    return source.replace("import.meta.url", f"(window.gradioAssets+{json.dumps(name)})")
