"""Bundles the scripts and styles of Gradio that the page needs, from the installed files, into one file of each kind.

Scripts: the bundle holds the source of every module. In the browser it makes a blob of each and an import map from the modules'
URLs to the blobs, so that a file outside the bundle imports the same modules. Styles: one stylesheet; disabled links with the
URLs of the single ones tell Vite's loader that they are present. If Gradio's files have another form than expected, or the
browser has no import maps, the files are loaded one by one as Gradio does.
"""

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
# Gradio's timer of a loading component keeps running in every animation frame after its element was removed, as that of the
# loading page does. With these two patterns it ends with its element.
CLOCK = re.compile(
    r"(function (\w+)\(\)\{\w+\(\(\)=>\{\w+\(\w+,\(performance\.now\(\)-\w+\(\w+\)\)/1e3\),\w+)&&\2\(\)\}\)\}"
)
CLOCK_ELEMENT = re.compile(r"\{(\w+)&&\w+\(\)&&\(\w+\.status===`pending`")
# Gradio reports the progress of a call to each output of its listener and searches the tree of all components for each: half a
# second of every switch of tabs. No listener here shows progress in its outputs, so none is registered for it.
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
    """Return the page's HTML with the nonce on each script element, as required by its policy (tabs/server/request_check.py)."""
    return TAG.sub(b'<script nonce="%s"' % nonce.encode(), page)


# Gradio asks below the path of the page: a proxy may have added one that the server does not know.
ROOT = b"""<script>window.gradio_config.root = new URL(".", location.href).href.replace(/[/]$/, "");</script>"""

# On the login page: Gradio empties the name too after a wrong password.
LOGIN = b"""<script>{
const {fetch} = window;
window.fetch = async (url, options) => {
  const answer = await fetch(url, options), sent = options && options.body instanceof FormData && options.body.get("username");
  if (answer.status === 400 && sent) setTimeout(() => {
    const name = document.querySelector("input:not([type=password])");
    name.value = sent;
    name.dispatchEvent(new Event("input", {bubbles: true}));
    document.querySelector("input[type=password]").focus();
  });
  return answer;
};
}</script>"""


@dataclass(frozen=True)
class Pack:
    """The two bundles of Gradio's files. script, style: their names under /assets/; empty without bundles."""

    files: dict[str, tuple[str, bytes]]  # name under /assets/: content type and content
    script: str = ""
    style: str = ""

    def insert_into(self, page: bytes) -> bytes:
        """Return the page's HTML with its root, and with the bundles instead of Gradio's entry script (unless one of these is missing)."""
        scripts = ROOT + (LOGIN if b'"auth_required":true' in page else b"")
        page = page.replace(b"</head>", scripts + b"</head>", 1)
        entry, style = ENTRY.search(page), STYLE.search(page)
        if not self.script or not entry or not style:
            return page
        script_tags = f'<script src="./assets/{self.script}"></script><script type="module">import "./assets/'.encode()
        page = page.replace(entry.group(), script_tags + entry.group(1) + b'";</script>', 1)
        joined = f'<link rel="stylesheet" href="./assets/{self.style}">'.encode()  # after the first, as Gradio has them
        return page.replace(style.group(), style.group() + joined, 1)


@functools.lru_cache(maxsize=2)
def pack(kinds: frozenset[str], folder: Path = ASSETS) -> Pack:
    """Return the bundles for a page with these component types; empty if Gradio's files have another form than expected.
    folder: of Gradio's files"""
    names = needed_files(kinds, folder)
    scripts = {name: _module(name, folder) for name in names if name.endswith(".js")}
    styles = {name: (folder / name).read_text("utf-8") for name in names if name.endswith(".css")}
    if not scripts or any("@import" in text or "@charset" in text for text in styles.values()):
        return Pack({})
    script = (SCRIPT % (json.dumps(scripts), json.dumps(list(styles)))).encode()
    style = "\n".join(styles.values()).encode()
    script_name, style_name = (f"page-{hashlib.sha256(each).hexdigest()[:10]}" for each in (script, style))
    files = {f"{script_name}.js": ("text/javascript", script), f"{style_name}.css": ("text/css", style)}
    return Pack(files, f"{script_name}.js", f"{style_name}.css")


def needed_files(kinds: Iterable[str], folder: Path) -> list[str]:
    """Return the names of the files to bundle: the entry, the Blocks module, each component type, and everything they import; [] if
    index.html has no entry."""
    read = functools.cache(lambda name: (folder / name).read_text("utf-8"))
    entry = ENTRY.search((folder.parent / "index.html").read_bytes())
    style = STYLE.search((folder.parent / "index.html").read_bytes())
    if entry is None or style is None:
        return []
    entry_name = entry.group(1).decode()
    files = {entry_name: None} | dict.fromkeys(_listed_files(read(entry_name)))
    for name in [name for name in files if name.endswith(".js")]:
        for module, deps in re.findall(DYNAMIC, read(name)):
            if module.startswith("Blocks-"):
                files |= dict.fromkeys([module, *_deps(read(name), deps)])
        for kind in sorted(kinds):
            if component := re.search(
                rf"[,{{]{kind}:{{(?:(?!component:).)*component:\(\)=>.{{1,20}}?{DYNAMIC}", read(name)
            ):
                files |= dict.fromkeys([component.group(1), *_deps(read(name), component.group(2))])
    queue = [name for name in files if name.endswith(".js")]
    while queue:
        imports = [name for name in STATIC.findall(read(queue.pop())) if name not in files]
        files |= dict.fromkeys(imports)
        queue += imports
    return [name for name in files if (folder / name).is_file()]


def _listed_files(source: str) -> list[str]:
    """Return the files in Vite's list of dynamic imports in a script; [] without a list."""
    listed = LISTED.search(source)
    return [name.removeprefix("./") for name in json.loads(listed.group(1))] if listed else []


def _deps(source: str, numbers: str) -> list[str]:
    """Return the files at these indices ("0,3,4") of the script's list of dynamic imports."""
    listed = _listed_files(source)
    return [listed[int(number)] for number in numbers.split(",") if number]


def _module(name: str, folder: Path) -> str:
    """Return a module's source, changed to run from a blob: imports are names of the import map, `import.meta.url` is a URL."""

    def to_import_map(match: re.Match[str]) -> str:
        bundled = (folder / match.group(2)).is_file()
        return f"{match.group(1)}gradio-assets/{match.group(2)}" if bundled else match.group()

    source = IMPORT.sub(to_import_map, (folder / name).read_text("utf-8"))
    if (clock := CLOCK_ELEMENT.search(source)) is not None:
        source = CLOCK.sub(rf"\1&&{clock.group(1)}&&\2()}})}}", source)
    source = PROGRESS.sub(r"\g<0>if(\4===`hidden`)\2=\3=[];", source)
    return source.replace("import.meta.url", f"(window.gradioAssets+{json.dumps(name)})")
