"use strict";
/* What is dropped: the files in a folder, which a browser hands over as one thing that cannot be read; and what nothing takes, for which
   the browser would leave the page. */
(() => {
  const atelier = window.atelier;
  /* What became of the drop before lies over the area, and takes the next one unless it asks something. */
  const TAKES_FOLDERS = "ds-drop", LIES_OVER = "#ds-intake:not(:has([data-act=add], [data-act=cancel]))";
  const refuse = (what, where, fix) => atelier.complain([{what, where, fix}], "", "drop");

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
  let folders = [];  // [name, number of its files] of each folder that is being uploaded, of a file itself ["", 1]: an upload has no folders
  atelier.droppedFolders = () => JSON.stringify({folders});
  for (const kind of ["drop", "change"]) addEventListener(kind, ({isTrusted}) => { if (isTrusted) folders = []; }, true);
  /** Upload the files dropped and those in the folders. */
  const takeFolders = async (entries) => {
    const inside = await Promise.all(entries.map((entry) => entry.isDirectory ? entriesOf(entry) : [entry])), all = inside.flat();
    const files = all.filter((entry) => entry.isFile), deeper = all.find((entry) => entry.isDirectory && !entry.name.startsWith("."));
    if (deeper) return refuse("A folder with folders inside cannot be dropped", deeper.fullPath, "drop it as a zip; or choose it under Image folder, if it is on the computer where Atelier runs");
    if (!files.length) return refuse("The folder has no files", entries.map(({name}) => name).join(", "), "drop a folder with images");
    folders = entries.map(({isDirectory, name}, n) => [isDirectory ? name : "", inside[n].filter((entry) => entry.isFile).length]);
    atelier.uploadFiles(TAKES_FOLDERS, await Promise.all(files.map(fileOf)));
  };
  document.addEventListener("drop", (event) => {
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    const folder = entries.find((entry) => entry.isDirectory), over = event.target.closest(LIES_OVER);
    if (!folder && !(over && entries.length)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!over && !event.target.closest(`#${TAKES_FOLDERS}`)) refuse("A folder cannot be dropped here", folder.name, "drop a file");
    else takeFolders(entries).catch((error) => refuse(`The folder cannot be read (${error.message})`, entries[0].name, "drop its files, or a zip"));
  }, true);

  /* Areas that take something handle the event themselves. A link from elsewhere brings no file, which is said. */
  let own = false;  // what is dragged comes from this page
  for (const kind of ["dragstart", "dragend"]) addEventListener(kind, () => { own = kind === "dragstart"; }, true);
  const brings = (event, type) => event.dataTransfer.types.includes(type);
  /* A link is never a caption or a prompt: long fields take plain text only. */
  const isForText = (event) => !brings(event, "Files") && event.target.closest?.(`input:not([type=file]), [contenteditable]${brings(event, "text/uri-list") ? "" : ", textarea"}`);
  const isLink = (event) => !own && brings(event, "text/uri-list") && !brings(event, "Files") && !isForText(event);
  addEventListener("dragover", (event) => {
    if (event.defaultPrevented || isForText(event) || event.target.closest?.("input[type=file]")) return;
    event.preventDefault();
    if (!isLink(event) && !(brings(event, "Files") && event.target.closest?.(LIES_OVER))) event.dataTransfer.dropEffect = "none";
  });
  addEventListener("drop", (event) => {
    if (!isLink(event)) return;
    event.preventDefault();
    event.stopPropagation();
    refuse("A link was dropped", event.dataTransfer.getData("text/uri-list"), "save its file first, and drop that");
  }, true);
})();
