"use strict";
/* The catalog of base models, on Tools and in a dialog on Train, and the browser for a model file. */
(() => {
  const atelier = window.atelier, {h, text, byId} = atelier;
  const USES = {base_model: "Use as base model", vae: "Use as VAE"};
  let catalog = [], listed = null;

  const ask = (name, data) => atelier.command(name, {...data, ask: atelier.ask()});
  const entryOf = (source) => catalog.find((entry) => entry.source === source);
  const button = (words, onclick, kind = "") => h("button", {type: "button", class: `btn small ${kind}`, onclick}, words);
  const use = async (kind, about) => {
    closeDialog();
    atelier.goTo("Train");
    await atelier.act("use_model", {use: kind, about});
    atelier.goToField(kind === "vae" ? "model.vae" : "model.base_model", false);  // a list in focus does not show its new value
  };

  /* ---- the catalog ---- */

  const stage = (entry, work) => entry.found ? "found" : work && atelier.going(work) ? "running" : entry.have ? "partial" : "missing";
  const actions = (entry, work, now) => ({
    found: () => [h("span", {class: "hint"}, `In ${entry.found}`), button(USES[entry.use], () => use(entry.use, entry.found), "primary")],
    running: () => [button("Pause", () => ask("tool_cancel", {work: work.id})), button("Cancel", () => ask("tool_discard", {about: entry.source}))],
    partial: () => [h("span", {class: "hint figures"}, `${atelier.bytes(entry.have)} of ${atelier.bytes(entry.size)} downloaded`),
      button("Resume", () => atelier.getModel(entry.source), "primary"), button("Discard", () => ask("tool_discard", {about: entry.source}))],
    missing: () => [button("Download", () => atelier.getModel(entry.source), "primary")],
  }[now]());

  const row = (entry) => {
    const work = atelier.downloadOf(entry.source), now = stage(entry, work);
    const problems = work && now !== "found" && now !== "running" ? work.problems : [];
    const node = h("li", {class: "model-row", "data-entry": entry.id, "data-state": now},
      h("div", {class: "model-head"}, h("strong", {}, entry.title), h("span", {class: "chip"}, entry.family), h("span", {class: "figures"}, atelier.bytes(entry.size)),
        h("a", {class: "link", href: entry.license_url, target: "_blank", rel: "noopener noreferrer", "aria-label": `License of ${entry.title}: ${entry.license}`}, entry.license)),
      h("p", {class: "hint"}, entry.purpose),
      entry.unverified.length ? h("p", {class: "hint model-unverified"}, `Not verified: ${entry.unverified.join(", ")}`) : null,
      now === "running" ? h("progress", {max: 1, "aria-label": `Download of ${entry.title}`}) : null,
      now === "running" ? h("p", {class: "hint figures model-pace"}) : null,
      problems.length ? atelier.problems(problems) : null,
      h("div", {class: "model-actions", role: "group", "aria-label": entry.title}, actions(entry, work, now)));
    node.dataset.key = JSON.stringify([now, entry.found, entry.have, work && work.id, problems]);
    move(node, work);
    return node;
  };
  /** Only numbers change while a download runs: the buttons stay, and with them the keyboard's place. */
  const move = (node, work) => {
    const bar = node.querySelector("progress");
    if (!bar || !work) return;
    atelier.slot(bar, work.state !== "waiting");
    if (work.share === null) bar.removeAttribute("value"); else bar.value = work.share;
    text(node.querySelector(".model-pace"), work.text);
  };

  atelier.paintCatalog = () => {
    for (const holder of document.querySelectorAll("[data-catalog]")) {
      for (const entry of catalog) {
        const old = holder.querySelector(`[data-entry="${entry.id}"]`), work = atelier.downloadOf(entry.source);
        const running = stage(entry, work) === "running";
        if (old && running && old.dataset.state === "running") { move(old, work); continue; }
        const made = row(entry);
        if (!old) holder.append(made);
        else if (old.dataset.key !== made.dataset.key) {
          const held = old.contains(document.activeElement);
          old.replaceWith(made);
          const first = held && made.querySelector("button");
          if (first) first.focus();
        }
      }
    }
  };
  atelier.parts.catalog = (list) => { catalog = list; atelier.paintCatalog(); atelier.repaintModel && atelier.repaintModel(); };
  /* A file has appeared or gone: the lists of the form are filled anew. */
  atelier.parts.models = (values) => {
    const now = JSON.stringify(values);
    if (listed !== null && listed !== now) atelier.refill();
    listed = now;
  };
  /** The catalog's name and size for a download, or the download's own name. */
  atelier.titleOf = (source) => { const entry = entryOf(source); return entry ? `${entry.title} (${atelier.bytes(entry.size)})` : source; };

  atelier.inCatalog = (source) => !!entryOf(source);

  /* ---- dialogs ---- */

  let open = null;
  const closeDialog = () => { if (open) open.close(); };
  const show = (title, ...children) => {
    closeDialog();
    const box = h("dialog", {class: "atelier-dialog models-dialog", "aria-label": title},
      h("div", {class: "card-head"}, h("h2", {}, title), h("span", {class: "grow"}), h("button", {type: "button", class: "btn quiet", onclick: () => box.close()}, "Close")), ...children);
    box.addEventListener("close", () => { if (open === box) { open = null; browsed = null; } });
    open = box;
    atelier.modal(box);
    return box;
  };
  atelier.modelsDialog = show;
  atelier.openCatalog = () => {
    show("Get a model",
      h("p", {class: "hint"}, "Downloads continue in the background, even if this page is closed. Files copied to the models folder appear here automatically."),
      h("ul", {class: "model-list", "data-catalog": ""}),
      h("p", {class: "hint"}, "Any other model: enter its Hub id or link in ",
        h("button", {type: "button", class: "link", onclick: () => { closeDialog(); atelier.openTools("tools"); }}, "Tools"), ", or browse for a file."));
    atelier.paintCatalog();
  };

  /* ---- browsing for a file ---- */

  let browsed = null, kind = "model", take = null;
  atelier.want(() => browsed === null ? {} : {files: browsed, kind});
  const go = (folder) => { browsed = folder; delete atelier.have.browse; atelier.command("look", {ask: atelier.ask()}); };
  /** What is found goes to `chosen` as a path. what: "model", "file", "folder" or "any"; from: where to begin. */
  const browse = (title, what, from, chosen) => {
    show(title, h("div", {class: "browser", id: "model-browser"}, h("p", {class: "hint"}, "Reading the folder ...")));
    [kind, take] = [what, chosen];
    go(from);
  };
  atelier.browseModels = (slot) => browse(slot === "vae" ? "Choose a VAE" : "Choose a base model", "model", "", (path) => use(slot, path));
  /* Next to a field that names a path (FieldView in tabs/form/view.py): a list of folders gets one more line. */
  const CHOOSE = {model: "Choose a model file", file: "Choose a file", folder: "Choose a folder", any: "Choose a file or folder"};
  /** Browse for one of CHOOSE, beginning at a path; `chosen` gets the path. */
  atelier.browse = (what, from, chosen) => browse(CHOOSE[what], what, from, (path) => { closeDialog(); chosen(path); });
  const fieldOf = (pressed) => pressed.parentElement.querySelector("input, textarea");
  atelier.on("click", "button[data-browse]", (pressed) => atelier.browseInto(pressed, pressed.dataset.browse));
  atelier.browseInto = (pressed, what) => {
    const place = pressed.closest(".board, #train-form"), {id, dataset: {arg, act}} = fieldOf(pressed);
    const now = () => [...place.querySelectorAll("[data-browse], [data-pick]")].map(fieldOf)  // the form may have been drawn anew meanwhile
      .find((field) => field.id === id && field.dataset.arg === arg && field.dataset.act === act);
    const last = fieldOf(pressed).value.trim().split("\n").pop();
    atelier.browse(what, last || ".", (path) => {
      const field = now();
      if (field) atelier.takePath(field, path);
    });
  };
  atelier.parts.browse = (data) => {
    const holder = byId("model-browser");
    if (!holder || !open) return;
    if (holder.querySelector("button:active")) { delete atelier.have.browse; return; }  // a click on what is drawn again at the same time would be lost
    if (!atelier.differs(holder, data)) return;
    const inside = (name) => data.folder.replace(/[\\/]$/, "") + data.separator + name;
    const folder = (words, to) => h("button", {type: "button", class: "btn folder", onclick: () => go(to)}, words);
    holder.replaceChildren(...[
      h("div", {class: "places"}, data.places.map(([name, to]) => h("button", {type: "button", class: "btn quiet", onclick: () => go(to)}, name))),
      h("div", {class: "at"}, h("code", {}, data.folder), kind === "folder" ? h("span", {class: "hint"}, `${data.images} image${data.images === 1 ? "" : "s"}${data.more ? " or more" : ""} here${data.below[0] ? `, ${data.below[0]}${data.below[1] ? " or more" : ""} in subfolders` : ""}`) : null),
      h("div", {class: "rows"}, data.parent ? folder(".. parent folder", data.parent) : null,
        data.folders.map((name) => folder(name + data.separator, inside(name))),
        data.files.map((file) => h("button", {type: "button", class: "btn folder file", onclick: () => take(inside(file.name))},
          file.name, h("span", {class: "hint figures"}, ` ${atelier.bytes(file.size)}`)))),
      data.reason ? h("p", {class: "field-error", role: "alert"}, atelier.sentence(data.reason))
        : data.files.length || data.whole ? null
        : h("p", {class: "hint"}, kind === "model" ? "No model files in this folder (.safetensors, .ckpt, .pt, .bin)." : "No files in this folder."),
      data.more ? h("p", {class: "hint"}, "This folder has more entries than are listed. Enter the path in the field instead.") : null,
      data.whole ? h("div", {class: "actions"}, button("Use this folder", () => take(data.folder), "primary")) : null].filter(Boolean));
    const first = holder.querySelector(".rows button");
    if (first && !holder.contains(document.activeElement) && document.activeElement === document.body) first.focus();
  };
})();
