"use strict";
/* What is dropped: the files in a folder, which a browser hands over as one thing that cannot be read; and what nothing takes, for which
   the browser would leave the page. */
(() => {
  const atelier = window.atelier;
  const TAKES_FOLDERS = "ds-drop";

  /** Upload files by the control of this id, as if they were chosen there. */
  atelier.uploadFiles = (id, files) => {
    const taken = document.querySelector(`#${id} input[type=file]`), data = new DataTransfer();
    if (!taken || !files.length) return;
    for (const file of files) data.items.add(file);
    taken.files = data.files;
    taken.dispatchEvent(new Event("change", {bubbles: true}));
  };

  const fileOf = (entry) => new Promise((done, failed) => entry.file(done, failed));
  const entriesOf = async (folder) => {
    const reader = folder.createReader(), found = [];
    for (;;) {  // a browser gives at most 100 at once
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return found;
      found.push(...some);
    }
  };
  const REPEATS = /^\d+_/;  // in a folder's name, which an upload has not
  /** Upload the files dropped and those in the folders. */
  const takeFolders = async (entries) => {
    const inside = await Promise.all(entries.map((entry) => entry.isDirectory ? entriesOf(entry) : [entry])), all = inside.flat();
    const deeper = all.find((entry) => entry.isDirectory && !entry.name.startsWith("."));
    const fix = "drop it as a zip; or choose it under Image folder, if it is on the computer where Atelier runs";
    const named = entries.find((entry) => entry.isDirectory && REPEATS.test(entry.name));
    if (named) return atelier.complain([{what: "A dropped folder loses its name, which holds the repeats", where: named.name, fix}]);
    if (deeper) return atelier.complain([{what: "A folder with folders inside cannot be dropped", where: deeper.fullPath, fix}]);
    atelier.uploadFiles(TAKES_FOLDERS, await Promise.all(all.filter((entry) => entry.isFile).map(fileOf)));
  };
  document.addEventListener("drop", (event) => {
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    const folder = entries.find((entry) => entry.isDirectory);
    if (!folder) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const refuse = (what, fix) => atelier.complain([{what, where: folder.name, fix}]);
    if (!event.target.closest(`#${TAKES_FOLDERS}`)) refuse("A folder cannot be dropped here", "drop a file");
    else takeFolders(entries).catch((error) => refuse(`The folder cannot be read (${error.message})`, "drop its files, or a zip"));
  }, true);

  /* Areas that take something handle the event themselves. A link from elsewhere brings no file, which is said. */
  let own = false;  // what is dragged comes from this page
  for (const kind of ["dragstart", "dragend"]) addEventListener(kind, () => { own = kind === "dragstart"; }, true);
  const brings = (event, type) => event.dataTransfer.types.includes(type);
  const isForText = (event) => !brings(event, "Files") && event.target.closest?.("textarea, input:not([type=file]), [contenteditable]");
  const isLink = (event) => !own && brings(event, "text/uri-list") && !brings(event, "Files") && !isForText(event);
  addEventListener("dragover", (event) => {
    if (event.defaultPrevented || isForText(event) || event.target.closest?.("input[type=file]")) return;
    event.preventDefault();
    if (!isLink(event)) event.dataTransfer.dropEffect = "none";
  });
  addEventListener("drop", (event) => {
    if (!isLink(event)) return;
    event.preventDefault();
    event.stopPropagation();
    atelier.complain([{what: "A link was dropped", where: event.dataTransfer.getData("text/uri-list"), fix: "save its file first, and drop that"}]);
  }, true);
})();
