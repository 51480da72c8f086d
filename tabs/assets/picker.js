"use strict";
/* The list of model files next to a field that names one (tabs/form/picker.py): a click takes a file into the field. */
(() => {
  const atelier = window.atelier, {h, text} = atelier;
  const PAUSE = 150, AGAIN = 1000;  // milliseconds after typing, and until files that are still being read are asked for again
  let asked = 0;

  const ask = async (data) => {
    const found = await atelier.question("pick", data);
    return found.lost ? null : found;
  };

  /** Opened by a field's List button. The form may be drawn anew meanwhile, so the field is looked for by its button. */
  const open = (pressed) => {
    const {pick: field, form} = pressed.dataset;
    const find = h("input", {type: "search", class: "text", id: "pick-find", "aria-label": "Search", placeholder: "Search", autocomplete: "off"});
    const list = h("ul", {class: "loras lora-cards model-offers", id: "pick-list", "aria-label": "Model files"}), says = h("p", {class: "hint", "aria-live": "polite"}), refused = h("div", {role: "alert"});
    const own = atelier.modelsDialog(pressed.dataset.title || pressed.ariaLabel.replace(/^Choose: /, ""), find, refused, list, says,
      h("div", {class: "actions"}, h("button", {type: "button", class: "btn", onclick: () => pressed.dataset.looks === "model" ? atelier.browseModels(field.split(".")[1]) : button(field, form) ? atelier.browseInto(button(field, form), pressed.dataset.looks) : gone()}, "Browse files")));
    const rows = () => [...list.querySelectorAll("button.choose")];
    const gone = () => { own.close(); atelier.say({kind: "info", text: "Nothing was chosen: the form has changed meanwhile."}); };
    const taken = new Set();  // by a list, which stays open for more
    const mark = () => rows().forEach((row) => row.closest("li").classList.toggle("taken", row.ariaDisabled = taken.has(row.dataset.value)));
    old = true;
    const fill = async () => {
      const number = ++asked, found = await ask({form, field, query: find.value});
      if (!own.open || number !== asked) return;
      if (found && list.dataset.rows !== found.rows) {
        list.dataset.rows = found.rows;
        const at = rows().indexOf(document.activeElement);
        list.innerHTML = found.rows;  // made by the server, names escaped
        if (at >= 0) (rows()[at] || find).focus();
        mark();
      }
      text(says, !found ? "The list cannot be read: the server does not answer." : found.reading ? "Reading the folders ..." : list.children.length ? ""
        : found.count ? "No file has these words." : `The models folder has no file of this kind yet${found.where ? `: ${found.where}` : ""}. Browse files to choose one from elsewhere.`);
      if (!found || found.reading) setTimeout(() => { if (own.open) fill(); }, AGAIN);
    };
    let typing = 0;
    find.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(fill, PAUSE); });
    list.addEventListener("click", async (event) => {
      const row = event.target.closest("button[data-value]");
      if (!row || taken.has(row.dataset.value)) return;
      const found = await ask({form, field, chosen: row.dataset.value});
      if (!found || !own.open) return;
      refused.replaceChildren(...(found.problems.length ? [atelier.problems(found.problems)] : []));
      if (found.problems.length) return refused.scrollIntoView({block: "nearest"});
      const into = button(field, form);
      if (!into) return gone();
      atelier.takePath(fieldBeside(into), row.dataset.value);  // a list of files gets one more line
      if (fieldBeside(into).tagName !== "TEXTAREA") return own.close();
      taken.add(row.dataset.value);
      mark();
      text(says, `${taken.size} added. Choose more, or close the list.`);
    });
    /* The arrow keys go through the search and the rows. */
    own.addEventListener("keydown", (event) => {
      const step = {ArrowDown: 1, ArrowUp: -1}[event.key], stops = [find, ...rows()], at = stops.indexOf(document.activeElement);
      if (event.key === "Enter" && at === 0 && stops[1]) { event.preventDefault(); stops[1].click(); }
      if (!step || at < 0) return;
      event.preventDefault();
      (stops[at + step] || stops[at]).focus();
    });
    own.addEventListener("close", () => { const left = buttons(field, form).find((each) => each.checkVisibility()); if (left) left.focus(); }, {once: true});
    find.focus();
    fill();
  };

  const buttons = (name, form) => [...document.querySelectorAll(`button[data-pick="${name}"][data-form="${form}"]`)];
  const fieldBeside = (each) => each.parentElement.querySelector("input, textarea");
  const button = (name, form) => buttons(name, form).find(fieldBeside);

  atelier.on("click", "button[data-pick]", open);

  /* ---- the other steps of a run, read when its strip is opened (tabs/form/lora_card.py, `lazy_strip`) ---- */

  document.addEventListener("toggle", async ({target}) => {
    const {steps, form} = target.dataset || {}, strip = target.querySelector("ul");
    if (steps === undefined || !target.open || strip.firstElementChild) return;
    const found = await ask({form, steps});
    if (!found || !target.isConnected) return;
    strip.innerHTML = found.steps;  // made by the server, names escaped
    const here = strip.querySelector("[aria-pressed=true]");
    if (here) here.scrollIntoView({block: "nearest", inline: "nearest"});
  }, true);

  /* ---- a field that is not in use shows what its path names: image, name and step (`face` there) ---- */

  const faces = new Map();  // HTML by path, "" of what is no file here
  let old = false;  // whether they are asked for again
  const linesOf = (field) => field.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const fields = () => [...document.querySelectorAll("button[data-pick]")].map(fieldBeside).filter((field) => field && !field.closest(".own:has(+ lora-rows)"));
  const show = (field) => {
    const lines = linesOf(field), has = field.nextElementSibling, html = lines.every((line) => faces.get(line)) ? lines.map((line) => `<span>${faces.get(line)}</span>`).join("") : "";
    const face = has && has.matches(".pick-face") ? has : html ? h("span", {class: "pick-face"}) : null;
    if (!html) return face && face.remove();
    if (face !== has) field.after(face);
    atelier.put(face, html);
  };
  atelier.showFaces = async () => {
    const used = fields(), texts = [...new Set(used.flatMap(linesOf))].filter((line) => old || !faces.has(line));
    old = false;
    used.forEach(show);
    if (!texts.length) return;
    for (const text of texts) if (!faces.has(text)) faces.set(text, "");
    const found = await ask({faces: texts});
    for (const [text, html] of Object.entries(found ? found.faces : {})) faces.set(text, html);
    fields().forEach(show);
  };
  document.addEventListener("atelier-drawn", atelier.showFaces);
  document.addEventListener("change", ({target}) => { if (target.matches(":is(.browses, .line) :is(input, textarea)")) setTimeout(atelier.showFaces); });
})();
