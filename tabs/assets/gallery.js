"use strict";
/* The images of Generate: the session's strip, the gallery and the viewer. Images are called by their names, never by numbers, so
   one that arrives shifts nothing; the gallery holds the whole list of names, and in the page only the tiles that are near.
   The server's side is tabs/generate/gallery.py. */
(() => {
  const atelier = window.atelier, {h, text, attr, byId, show} = atelier;
  const CELL = 158, GAP = 10, WORDS = 57;  // pixels: a tile's least width, between tiles, the lines below an image
  const AHEAD = 2, MOST_TILES = 300, MOST_COPIED = 1000, SOON = 60, TYPING = 250, UNDO = 10000, KEPT = 9;  // letters at the end of a LoRA's name, with its strength
  const tiles = new Map();   // name -> what the server says of it, with the version of the list that it came with
  const nodes = new Map();   // name -> tile in the gallery
  const chosen = new Set();
  let names = [], strip = [], version = -1, waiting = null, total = 0, left = 0, begun = false;
  let current = "", anchor = "", columns = 1, side = CELL, tall = 0, asking = 0, timer = 0;
  let undos = [], deleted = [], away = null, viewer = null;  // messages with Undo; what Ctrl+Z in the viewer brings back, also without them

  const ask = async (asked, whom = "gallery") => {
    const found = await atelier.question(whom, asked);
    if (!found.problems) return found;
    atelier.complain(found.problems);
    return null;
  };
  const number = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const grid = () => byId("shelf-grid"), field = () => byId("shelf-field");
  const filter = () => ({words: byId("shelf-words").value, model: byId("shelf-model").value, lora: byId("shelf-lora").value,
    day: byId("shelf-date").value, stars: Number(byId("shelf-stars").value)});
  const filtered = () => Object.values(filter()).some(Boolean);

  /* ---- the list ---- */

  let forcing = false;  // until an answer is taken: a later question may overtake the one that was forced
  const load = async (forced, more) => {
    forcing = forcing || forced;
    const mine = ++asking, found = await ask({act: "list", ...filter(), ...more});
    if (!found || mine !== asking) return;
    take(found, forcing);
    forcing = false;
  };
  /** Nobody is looking at the gallery: what comes may stand in front. */
  const calm = () => !viewer && !chosen.size && grid().scrollTop < 4 && !grid().matches(":hover") && !grid().contains(document.activeElement);
  const same = (one, other) => one.length === other.length && one.every((name, n) => name === other[n]);
  const take = (found, forced) => {
    ({version, total, left} = found);
    for (const [name, tile] of Object.entries(found.tiles)) tiles.set(name, {...tile, version});
    drawStrip(found.strip);
    offer("shelf-model", [["", "any model"]], found.models);
    offer("shelf-lora", [["", "any LoRA"]], found.loras);
    offer("shelf-date", [["", "any date"], ["today", "today"], ["week", "last 7 days"]], found.days);
    away = found.away;
    if (away && away.recent && !undos.length && !read.has(found.away.token)) { undos.push({...away, names: []}); drawUndo(); }
    if (forced || !begun || calm() || same(names, found.names)) put(found.names);
    else waiting = found.names;
    begun = true;
    drawLine();
  };
  let sought = "";  // the image that the keyboard goes to as soon as the list has it
  const put = (fresh) => {
    names = fresh;
    waiting = null;
    attr(grid(), "role", names.length ? "listbox" : "group");
    attr(grid(), "aria-multiselectable", names.length ? "true" : null);
    const there = new Set(names);
    for (const name of chosen) if (!there.has(name)) chosen.delete(name);
    measure();
    draw();
    drawLine();
    if (names.includes(sought)) goTo(sought);
  };
  const offer = (id, first, counted) => {
    const node = byId(id), kept = node.value, options = [...first, ...counted.map(([name, count]) => [name, `${name} (${count.toLocaleString("en")})`])];
    if (same(options.map(([, words]) => words), [...node.options].map((each) => each.textContent))) return;
    if (kept && !options.some(([name]) => name === kept)) options.push([kept, kept]);
    node.replaceChildren(...options.map(([name, words]) => h("option", {value: name}, words)));
    node.value = kept;
  };
  const drawLine = () => {
    const of = filtered() ? `${names.length.toLocaleString("en")} of ${number(total, "image")}` : number(total, "image");
    const reading = left ? `, reading the settings of ${left.toLocaleString("en")}` : "";
    const none = begun && !names.length && (filtered() ? "No image matches." : "No images yet.");
    text(byId("shelf-count"), chosen.size ? `${chosen.size.toLocaleString("en")} selected` : none || of + reading);
    const fresh = waiting ? waiting.filter((name) => !names.includes(name)).length : 0;
    text(byId("shelf-new"), fresh ? `Show ${number(fresh, "new image")}` : "Show changes");
    show(byId("shelf-new"), !!waiting);
    byId("shelf-trash").disabled = !chosen.size;
    byId("shelf-compare").disabled = chosen.size !== 2;
    byId("shelf-train").disabled = !names.length;
    byId("shelf-back").disabled = !away;
    attr(byId("shelf-back"), "title", away ? `The last: ${away.said}` : null);
  };

  /* ---- tiles ---- */

  const measure = () => {
    const width = field().clientWidth;
    if (!width) return;
    columns = Math.max(2, Math.floor((width + GAP) / (CELL + GAP)));
    side = Math.floor((width - GAP * (columns - 1)) / columns);
    tall = side + WORDS + GAP;
    field().style.height = `${Math.ceil(names.length / columns) * tall}px`;
  };
  const draw = () => {
    if (!tall) return;
    const box = grid(), top = Math.max(0, Math.floor(box.scrollTop / tall) - AHEAD);
    const end = Math.ceil((box.scrollTop + box.clientHeight) / tall) + AHEAD;
    const near = names.slice(top * columns, end * columns), wanted = new Set(near);
    if (!names.includes(current)) current = names[0] || "";
    for (const [name, node] of nodes) if (!wanted.has(name) && node !== document.activeElement) { node.remove(); nodes.delete(name); }
    near.forEach((name, n) => placed(name, top * columns + n));
    if (current && !nodes.has(current) && near.length) near.forEach((name, n) => { nodes.get(name).tabIndex = n ? -1 : 0; });
    fetchLater(near.filter((name) => (tiles.get(name) || {}).version !== version));
  };
  const fetchLater = (missing) => {
    clearTimeout(timer);
    if (missing.length) timer = setTimeout(async () => {
      const asked = version, found = await ask({act: "tiles", names: missing.slice(0, MOST_TILES)});
      if (!found) return;
      for (const name of missing) if (!found.tiles[name] && tiles.has(name)) tiles.get(name).version = asked;
      for (const [name, tile] of Object.entries(found.tiles)) tiles.set(name, {...tile, version: asked});
      for (const name of missing) if (nodes.has(name)) fill(nodes.get(name), name);
    }, SOON);
  };
  const made = (name) => h("div", {class: "tile", role: "option", "data-name": name, tabindex: -1, "aria-selected": "false"},
    h("div", {class: "shot"}, h("img", {alt: "", loading: "lazy", decoding: "async"})), h("div", {class: "says"}), " ", h("div", {class: "own"}), " ", h("div", {class: "sizes"}));
  const placed = (name, at) => {
    let node = nodes.get(name);
    if (!node) {
      nodes.set(name, node = made(name));
      fill(node, name);
      field().append(node);
    }
    node.style.width = `${side}px`;
    node.style.transform = `translate(${(at % columns) * (side + GAP)}px, ${Math.floor(at / columns) * tall}px)`;
    node.tabIndex = name === current ? 0 : -1;
    attr(node, "aria-selected", String(chosen.has(name)));
    attr(node, "aria-posinset", at + 1);
    attr(node, "aria-setsize", names.length);
    if (tiles.has(name)) fill(node, name);
  };
  const rated = (stars) => stars ? "★".repeat(stars) : "";
  const fill = (node, name) => {
    const tile = tiles.get(name), [shot, says, own, sizes] = node.children;
    if (!tile || node.tile === tile) return;
    node.tile = tile;
    attr(shot.firstChild, "src", tile.thumb);
    const base = shot.querySelector(".base");
    if (base && base.getAttribute("src") !== tile.base) base.remove();
    if (tile.base && !shot.querySelector(".base")) shot.append(h("img", {class: "base", src: tile.base, alt: "", title: "base model", loading: "lazy"}));
    const seed = tile.seed === null ? "" : `seed ${tile.seed}`;
    text(says, tile.says);
    attr(says, "title", tile.says);
    sizes.replaceChildren(...(tile.stars ? [h("span", {class: "shelf-rated", "aria-hidden": "true"}, rated(tile.stars)), " "] : []), seed);
    own.replaceChildren(atelier.middle(tile.own, KEPT));
    attr(own, "title", tile.own);
    attr(node, "aria-label", [tile.says, tile.own, seed, tile.base && "next to the base model", tile.stars && number(tile.stars, "star")].filter(Boolean).join(", "));
  };
  /** New images come in front; who has scrolled on keeps looking at the same ones. */
  const drawStrip = (fresh) => {
    const box = byId("shelf-strip"), there = new Map([...box.querySelectorAll(".tile")].map((node) => [node.dataset.name, node]));
    const before = box.scrollLeft || box.scrollTop, room = () => Math.max(box.scrollWidth, box.scrollHeight), long = room(), held = box.contains(document.activeElement) ? document.activeElement.dataset.name : "";
    strip = fresh;
    attr(box, "role", strip.length ? "listbox" : "group");  // a list box has options
    if (!strip.length) { if (there.size || !begun) box.replaceChildren(h("span", {class: "hint"}, "New images appear here.")); return; }
    const wanted = strip.map((name) => there.get(name) || made(name));
    if (!same(wanted, [...box.children])) {
      box.replaceChildren(...wanted);
      if (before > 4) box.scrollTo(before + room() - long, before + room() - long);
    }
    wanted.forEach((node) => { fill(node, node.dataset.name); node.tabIndex = -1; });
    const stop = wanted.find((node) => node.dataset.name === held) || wanted[0];
    stop.tabIndex = 0;
    if (held) stop.focus({preventScroll: true});
  };

  /* ---- keyboard, mouse, selection ---- */

  const goTo = (name) => {
    sought = names.includes(name) ? "" : name;
    if (sought) return;
    const box = grid(), row = Math.floor(names.indexOf(name) / columns) * tall;
    current = name;
    if (row < box.scrollTop) box.scrollTop = row;
    else if (row + tall > box.scrollTop + box.clientHeight) box.scrollTop = row + tall - box.clientHeight;
    draw();
    if (nodes.has(name)) nodes.get(name).focus({preventScroll: true});
  };
  const pick = (name, through) => {
    if (through && names.includes(anchor)) {
      const [from, to] = [names.indexOf(anchor), names.indexOf(name)].sort((one, other) => one - other);
      for (const each of names.slice(from, to + 1)) chosen.add(each);
    } else {
      if (!chosen.delete(name)) chosen.add(name);
      anchor = name;
    }
    draw();
    drawLine();
  };
  const selecting = () => byId("shelf-select").getAttribute("aria-pressed") === "true";
  const clear = () => { chosen.clear(); draw(); drawLine(); };
  const meant = (name) => chosen.has(name) ? names.filter((each) => chosen.has(each)) : [name];

  const onClick = (event) => {
    const node = event.target.closest && event.target.closest(":is(#shelf-grid, #shelf-strip) .tile"), inGrid = node && node.closest("#shelf-grid");
    if (!node) return;
    const {name} = node.dataset;
    if (inGrid && (event.ctrlKey || event.metaKey || event.shiftKey || selecting())) {
      current = name;
      pick(name, event.shiftKey);
    } else openViewer(name, inGrid ? names : strip, inGrid ? goTo : stripTo);
  };
  const onKey = (event) => {
    const node = event.target.closest && event.target.closest(":is(#shelf-grid, #shelf-strip) .tile");
    if (!node || event.altKey) return;
    const {name} = node.dataset, inGrid = !!node.closest("#shelf-grid"), list = inGrid ? names : strip, at = list.indexOf(name);
    const page = Math.max(1, Math.floor(grid().clientHeight / tall)) * columns;
    const steps = {ArrowLeft: -1, ArrowRight: 1, ...(inGrid ? {ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page} : {ArrowUp: -1, ArrowDown: 1})};
    const key = event.key, plain = !event.ctrlKey && !event.metaKey;
    if (key in steps || key === "Home" || key === "End") {
      const to = key === "Home" ? 0 : key === "End" ? list.length - 1 : at + steps[key];
      const next = list[Math.max(0, Math.min(list.length - 1, to))];
      if (inGrid) {
        if (event.shiftKey) { if (!names.includes(anchor)) anchor = name; pick(next, true); }
        goTo(next);
      } else stripTo(next);
    } else if (key === "Enter") openViewer(name, list, inGrid ? goTo : stripTo);
    else if (key === " " && inGrid) pick(name, event.shiftKey);
    else if (key === "a" && !plain && inGrid) { names.forEach((each) => chosen.add(each)); draw(); drawLine(); }
    else if (key === "Escape" && chosen.size) clear();
    else if (key === "Delete") remove(inGrid ? meant(name) : [name]);
    else if (key.toLowerCase() === "z" && !plain && !event.shiftKey) undoLast();
    else if (plain && /^[0-5]$/.test(key)) star(inGrid ? meant(name) : [name], Number(key));
    else return;
    event.preventDefault();
  };
  const stripTo = (name) => {
    for (const node of byId("shelf-strip").querySelectorAll(".tile")) {
      node.tabIndex = node.dataset.name === name ? 0 : -1;
      if (!node.tabIndex) { node.focus({preventScroll: true}); node.scrollIntoView({block: "nearest", inline: "nearest"}); }
    }
  };

  /* ---- stars, trash, datasets ---- */

  const refill = (name) => {
    for (const node of document.querySelectorAll("#shelf-grid .tile, #shelf-strip .tile")) if (node.dataset.name === name) fill(node, name);
  };
  const star = async (of, stars) => {
    const found = await ask({act: "stars", names: of, stars});
    for (const [name, kept] of Object.entries(found ? found.stars : {})) {
      if (tiles.has(name)) tiles.set(name, {...tiles.get(name), stars: kept});
      refill(name);
      if (viewer && viewer.name === name) viewer.rate(kept);
    }
  };
  const leaving = new Set();  // on their way to the trash: keys are faster
  const remove = async (of) => {
    const more = of.filter((name) => !leaving.has(name));
    if (more.length < of.length && !more.length) return false;
    for (const name of more) leaving.add(name);
    const found = await ask({act: "trash", names: more});
    for (const name of more) leaving.delete(name);
    if (!found) return false;
    const gone = new Set(found.names), at = names.findIndex((name) => gone.has(name)), inStrip = strip.findIndex((name) => gone.has(name));
    const active = document.activeElement, inGrid = grid().contains(active), wasStrip = byId("shelf-strip").contains(active);
    undos.push(found);
    deleted.push(found);
    away = found;
    drawUndo();
    drawLine();
    for (const name of gone) chosen.delete(name);
    if (names.some((name) => gone.has(name))) put(names.filter((name) => !gone.has(name)));
    drawStrip(strip.filter((name) => !gone.has(name)));
    if (inGrid) goTo(names[Math.min(Math.max(at, 0), names.length - 1)]);
    else if (wasStrip && strip.length) stripTo(strip[Math.min(Math.max(inStrip, 0), strip.length - 1)]);
    toUndo();
    return true;
  };
  /** Where the only image was deleted, the keyboard goes on at its Undo. */
  const toUndo = () => {
    const undo = document.querySelector("#shelf-undo button");
    if (undo && document.activeElement === document.body) undo.focus();
  };
  const read = new Set(JSON.parse(atelier.recall("atelier-trash-read", true) || "[]"));
  let undoTimer = 0;
  /** The message about the trash goes by itself, unless it is pointed at or has the keyboard. */
  const passUndo = () => {
    clearTimeout(undoTimer);
    undoTimer = setTimeout(() => { if (document.querySelector("#shelf-undo:is(:hover, :focus-within)")) passUndo(); else closeUndo(); }, UNDO);
  };
  const closeUndo = () => {
    for (const each of undos) read.add(each.token);  // Ctrl+Z still knows them
    atelier.remember("atelier-trash-read", JSON.stringify([...read]), true);
    drawUndo();
  };
  atelier.on("click", "#gen-draw, [role=tab], .viewer .actions .btn", closeUndo);
  const drawUndo = () => {
    const last = undos[undos.length - 1];
    let bar = byId("shelf-undo");
    if (!last || read.has(last.token)) { if (bar) bar.remove(); return; }
    if (!bar) bar = h("div", {id: "shelf-undo", role: "status"});
    if (bar.dataset.token !== last.token) {
      bar.dataset.token = last.token;
      passUndo();
      bar.replaceChildren(h("span", {}, `${last.said}.`), h("button", {type: "button", class: "btn", onclick: () => putBack(last)}, "Undo"),
        h("button", {type: "button", class: "btn quiet", "aria-label": "Close this message", onclick: () => {
          closeUndo();
          if (viewer) viewer.focus();
        }}, "Close"));
    }
    const home = viewer ? viewer.box : document.body;
    if (bar.parentElement !== home) home.append(bar);
  };
  const undoLast = () => { const last = deleted.pop(); if (last) putBack(last); };
  const putBack = async (last) => {
    const inStrip = byId("shelf-strip").contains(document.activeElement);
    const found = await ask({act: "back", token: last.token});
    if (!found) return;
    [undos, deleted] = [undos, deleted].map((list) => list.filter((each) => each.token !== last.token));
    drawUndo();
    if (viewer) viewer.restored(last, found.names);
    await load(true);
    if (!viewer && found.names.length) (inStrip && strip.includes(found.names[0]) ? stripTo : goTo)(found.names[0]);
  };
  const train = async () => {
    const many = chosen.size || names.length, taken = Math.min(many, MOST_COPIED);
    const which = many > MOST_COPIED ? `the first ${number(taken, "image")} of ${many.toLocaleString("en")}` : number(taken, "image");
    const folder = await atelier.dialog({title: "Train on these", input: "generated", ok: "Copy",
      text: `Copies ${which}, each with its prompt as caption, into a new folder that is added to Dataset. Name of the folder:`,
      check: (name) => name ? "" : "Enter a name."});
    if (!folder) return;
    const found = await ask({act: "train", folder, ...filter(), names: chosen.size ? names.filter((name) => chosen.has(name)) : []});
    if (found) drawCopy(found.copy);
  };
  let closed = 0;
  const drawCopy = (copy) => {
    const place = byId("shelf-copy");
    if (!copy || copy.id === closed) return place.replaceChildren();
    const close = () => { closed = copy.id; place.replaceChildren(); };
    if (!copy.done) place.replaceChildren(h("span", {class: "hint"}, copy.text), h("span", {class: "gauge", role: "progressbar", "aria-label": copy.text, "aria-valuenow": Math.round(100 * copy.share), "aria-valuemin": 0, "aria-valuemax": 100}, h("i", {style: `width: ${100 * copy.share}%`})),
      h("button", {type: "button", class: "btn quiet small", onclick: () => ask({act: "cancel"})}, "Cancel"));
    else if (copy.problems.length) { atelier.complain(copy.problems); close(); }
    else place.replaceChildren(h("span", {class: "hint", role: "status"}, `${copy.said}.`), h("a", {class: "btn small", href: "#Dataset", onclick: close}, "Open Dataset"),
      h("button", {type: "button", class: "btn quiet small", "aria-label": "Close this message", onclick: close}, "Close"));
  };

  /* ---- the viewer ---- */

  /** back: brings the keyboard to the image that was seen last; marked: another one that is shown next to it */
  const openViewer = (name, list, back, marked = "") => {
    if (viewer) return;
    viewer = atelier.imageViewer({name, marked, list: list.includes(name) ? [...list] : [name], thumb: (of) => (tiles.get(of) || {}).thumb, ask, star, remove,
      undo: undoLast,
      closed: (last) => {
        viewer = null;
        drawUndo();
        if (waiting && calm()) put(waiting);
        if (back) back(last);
        setTimeout(toUndo);
      },
      send: atelier.useImage});
    drawUndo();
  };
  /** An image is used for something. Upscaling asks how first; begins: runs before it is sent */
  atelier.useImage = async (act, of, begins = () => {}) => {
    const how = act === "upscale" ? await upscaling(of) : "";
    if (how === null) return;
    begins();
    atelier.sendImage(act, of, how);
    sent(act, of);
  };
  let chosenBefore = {};  // in the dialog of Upscale
  /** Ask how an image is upscaled. Returns the choice as JSON, null when it was cancelled. */
  const upscaling = async (of) => {
    const found = await ask({name: of}, "upscale");
    return found && new Promise((done) => {
      const names = found.upscalers.filter(([, , , why]) => !why).map(([name]) => name);
      const offer = (options, value) => { const node = h("select", {}, options.map(([each, words, , why]) => h("option", {value: each, disabled: !!why, title: why}, why ? `${words}: ${why}` : words))); node.value = value; return node; };
      const factor = offer(found.sizes.map(([times, ...sides]) => [times, `${times} times${sides.length === 2 ? `: ${sides.join(" × ")} pixels` : ""}`]), chosenBefore.factor || found.sizes[0][0]);
      const upscaler = offer(found.upscalers, names.includes(chosenBefore.upscaler) ? chosenBefore.upscaler : names[0]);
      const strength = h("input", {type: "text", class: "num", inputmode: "decimal", autocomplete: "off", "aria-describedby": "upscale-says", value: chosenBefore.strength ?? found.strength});
      const says = h("p", {class: "hint", id: "upscale-says"}), warning = h("p", {class: "field-error", role: "alert"});
      const latent = () => found.upscalers.some(([name, , through]) => through && name === upscaler.value);
      const describe = () => text(says, latent() ? "Latent upscalers need a denoising strength of 0.5 or more." : "0 only enlarges. 0.2 adds detail and keeps the shapes.");
      upscaler.addEventListener("change", describe);
      describe();
      const box = h("dialog", {class: "atelier-dialog upscaling", "aria-label": "Upscale"}, h("form", {method: "dialog", onsubmit: (event) => {
        event.preventDefault();
        const value = Number(strength.value.trim().replace(",", ".") || NaN), wrong = !(value >= 0 && value <= 1) ? "Enter a denoising strength from 0 to 1." : !value && latent() ? "Choose an image upscaler to only enlarge." : "";
        text(warning, wrong);
        if (wrong) return strength.focus();
        chosenBefore = {factor: Number(factor.value), upscaler: upscaler.value, strength: value};
        done(JSON.stringify(chosenBefore));
        box.close();
      }}, h("h2", {}, `Upscale ${found.file}`), h("label", {}, "Size", factor), h("label", {}, "Upscaler", upscaler), h("label", {}, "Denoising strength", strength), says, warning,
      h("div", {class: "buttons"}, h("button", {type: "button", class: "btn", onclick: () => box.close()}, "Cancel"), h("button", {type: "submit", class: "btn primary"}, "Upscale"))));
      box.addEventListener("close", () => done(null));
      atelier.modal(box);
      factor.focus();
    });
  };
  /** Where an image was sent to comes into sight: what is being made, or the group whose field holds it. */
  const sent = (act, of) => {
    if (act === "upscale" || act === "vary") byId("gen-status").scrollIntoView({block: "nearest"});
    else if (act !== "use") reveal(act, of.split("/").pop());
  };
  /** Once the answer has put the image into its field, its card has the keyboard, or the painter of masks opens. */
  const reveal = async (act, file) => {
    const card = await atelier.whenFound(() => {
      const taken = byId("gen-image_path"), shown = document.querySelector("#gen-cards [data-card=image_to_image]:not([hidden])");
      return taken && taken.value.endsWith(file) && shown;
    });
    if (!card) return;
    const mask = card.querySelector("[data-paint=mask]");
    card.scrollIntoView({block: "nearest"});  // what stands below the prompts is still seen
    mask.focus({preventScroll: true});
    if (act === "inpaint") mask.click();
  };
  /* The buttons of the large image (tabs/generate/view.py). */
  atelier.on("click", "#gen-newest [data-image-use]", ({dataset}) => atelier.useImage(dataset.imageUse, dataset.name));
  atelier.on("click", "#gen-newest [data-image-star]", async (button) => {
    const stars = Number(button.dataset.imageStar);
    await star([button.dataset.name], stars);
    text(button, rated(stars) || "\u2606");
    attr(button, "aria-pressed", String(!!stars));
    button.dataset.imageStar = stars ? "0" : "1";
  });
  atelier.on("click", "#gen-newest [data-image-trash]", ({dataset}) => remove([dataset.name]));
  atelier.on("click", "[data-view]", ({dataset: {view}}) => openViewer(view, strip.includes(view) ? strip : names));

  /* ---- begin ---- */

  atelier.parts.gallery = ({version: now, copy}) => {
    if (!grid()) return;
    drawCopy(copy);
    if (now !== version) load(false);
  };
  document.addEventListener("click", onClick);
  document.addEventListener("keydown", onKey);
  /** The gallery stands in the page (tabs/generate/gallery.py, SENDS). */
  atelier.attachGallery = () => {
    let typing = 0;
    const again = () => { clearTimeout(typing); grid().scrollTop = 0; chosen.clear(); load(true); };
    const on = (id, kind, work) => byId(id).addEventListener(kind, work);
    on("shelf-grid", "scroll", draw);
    on("shelf-words", "input", () => { clearTimeout(typing); typing = setTimeout(again, TYPING); });
    for (const id of ["shelf-model", "shelf-lora", "shelf-date", "shelf-stars"]) on(id, "change", again);
    on("shelf-new", "click", () => { const first = waiting && waiting[0]; if (waiting) put(waiting); if (first) goTo(first); });
    on("shelf-select", "click", ({currentTarget}) => { const now = !selecting(); attr(currentTarget, "aria-pressed", String(now)); if (!now) clear(); });
    on("shelf-compare", "click", () => { const [marked, name] = names.filter((each) => chosen.has(each)); if (name) openViewer(name, names, goTo, marked); });
    on("shelf-trash", "click", () => remove(names.filter((name) => chosen.has(name))));
    on("shelf-back", "click", () => putBack(away));
    on("shelf-train", "click", train);
    new ResizeObserver(() => { measure(); draw(); if (!begun && field().clientWidth) load(true, {whole: true}); }).observe(grid());
  };
  if (window.atelierGallery) atelier.attachGallery();
})();
