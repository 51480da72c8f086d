"use strict";
/* Paints a mask, or regions in colors, over an image: `atelier.paint`. White parts of a mask count, black ones do not. The canvas holds
   black as opaque, so that a stroke is one drawing operation and the browser composes it with the image. */
(() => {
  const atelier = window.atelier, {h} = atelier;
  const TINT = [214, 0, 110];       // of the black parts; only its opacity is kept
  const COLOR = `rgb(${TINT})`;
  const MOST_KEPT = 192 << 20;      // bytes of earlier states for undo
  const ZOOM = 1.25, FARTHEST = 0.25, NEAREST = 32;  // factor of a step; minimum, times the fitted scale; maximum, screen pixels per image pixel
  const MOVE = 60;                  // pixels that an arrow key moves the view

  const canvasOf = (width, height) => {
    const canvas = h("canvas", {width, height});
    return [canvas, canvas.getContext("2d", {willReadFrequently: true})];
  };
  const loaded = async (url) => { const image = new Image(); image.src = url; await image.decode(); return image; };
  const within = (value, least, most) => Math.min(most, Math.max(least, value));

  /** The mask as strokes, whole-mask changes, undo and redo. `blank`: nothing was painted yet, and the first stroke decides
      whether what it touches is the white part or the black one. `whites`: the canvas holds white as opaque instead, so what is
      painted is what covers the image, and nothing is painted at first. */
  class Mask {
    constructor(width, height, whites = false) {
      Object.assign(this, {width, height, whites, blank: true, done: [], undone: [], saved: 0, steps: 0});
      [this.canvas, this.context] = canvasOf(width, height);
      [this.before, this.earlier] = canvasOf(width, height);  // before the current stroke
    }
    async load(url) {
      const [, context] = canvasOf(this.width, this.height);
      context.drawImage(await loaded(url), 0, 0, this.width, this.height);
      const pixels = context.getImageData(0, 0, this.width, this.height), data = pixels.data;
      for (let n = 0; n < data.length; n += 4) { data[n + 3] = this.whites ? data[n] : 255 - data[n]; [data[n], data[n + 1], data[n + 2]] = TINT; }
      for (const each of [this.context, this.earlier]) each.putImageData(pixels, 0, 0);
      this.blank = false;
    }
    get whole() { return [0, 0, this.width, this.height]; }
    get dirty() { return (this.done.length ? this.done[this.done.length - 1].step : 0) !== this.saved; }
    /** Whether nothing is white. */
    get black() {
      const {data} = this.context.getImageData(...this.whole), full = this.whites ? 0 : 255;
      for (let n = 3; n < data.length; n += 4) if (data[n] !== full) return false;
      return true;
    }
    get busy() { return !!this.stroke; }
    cover(how) { this.context.globalCompositeOperation = how; this.context.fillStyle = COLOR; this.context.fillRect(...this.whole); }

    begin(at, size, erases) {
      this.stroke = {at, size, erases, wasBlank: this.blank, box: [...at, ...at]};
      if (this.blank && !erases && !this.whites) { this.cover("source-over"); this.stroke.box = [0, 0, this.width, this.height]; }
      this.blank = this.blank && erases && this.whites;
      this.go(at);
    }
    /** How a stroke is drawn: [composite operation, color]. */
    ink(erases) { return [erases === this.whites ? "destination-out" : "source-over", COLOR]; }
    go(to) {
      const {stroke, context} = this, [x, y] = stroke.at, [how, color] = this.ink(stroke.erases);
      Object.assign(context, {globalCompositeOperation: how, strokeStyle: color, fillStyle: color, lineCap: "round", lineWidth: stroke.size});
      context.beginPath();
      if (x === to[0] && y === to[1]) { context.arc(x, y, stroke.size / 2, 0, 7); context.fill(); }
      else { context.moveTo(x, y); context.lineTo(...to); context.stroke(); }
      const box = stroke.box, reach = stroke.size / 2 + 2;
      stroke.box = [Math.min(box[0], to[0] - reach), Math.min(box[1], to[1] - reach), Math.max(box[2], to[0] + reach), Math.max(box[3], to[1] + reach)];
      stroke.at = to;
    }
    end() {
      const {box, wasBlank} = this.stroke, left = Math.max(0, Math.floor(box[0])), top = Math.max(0, Math.floor(box[1]));
      const width = Math.min(this.width, Math.ceil(box[2])) - left, height = Math.min(this.height, Math.ceil(box[3])) - top;
      this.stroke = null;
      if (width > 0 && height > 0) this.keep([left, top, width, height], wasBlank);
      else this.blank = wasBlank;
    }
    /** Undo the current stroke: a second finger touches the screen. */
    drop() {
      this.blank = this.stroke.wasBlank;
      this.stroke = null;
      this.copy(this.before, this.context, this.whole);
    }
    all(change) {
      const wasBlank = this.blank;
      this.cover(change === "invert" ? "source-out" : this.ink(change === "clear")[0]);
      this.blank = false;
      this.keep(this.whole, wasBlank);
    }
    copy(from, to, [x, y, width, height]) {
      to.globalCompositeOperation = "source-over";
      to.clearRect(x, y, width, height);
      to.drawImage(from, x, y, width, height, x, y, width, height);
    }
    keep(box, blank) {
      this.done.push({step: ++this.steps, blank, at: box.slice(0, 2), pixels: this.earlier.getImageData(...box)});
      this.undone = [];
      this.copy(this.canvas, this.earlier, box);
      let bytes = 0, first = this.done.length;
      while (first > 0 && (bytes += this.done[first - 1].pixels.data.length) <= MOST_KEPT) first -= 1;
      if (this.done.splice(0, Math.min(first, this.done.length - 1)).length) this.saved = -1;  // undo cannot reach the saved state any more
    }
    /** Undo or redo: restore the newest state of one list and push the present one to the other. */
    swap(from, to) {
      const state = from.pop(), box = [...state.at, state.pixels.width, state.pixels.height];
      to.push({...state, blank: this.blank, pixels: this.context.getImageData(...box)});
      this.context.putImageData(state.pixels, ...state.at);
      this.copy(this.canvas, this.earlier, box);
      this.blank = state.blank;
    }
    /** What is saved: the mask in gray. */
    flatten(context) {
      const [painted, rest] = this.whites ? ["#fff", "#000"] : ["#000", "#fff"];
      for (const [how, color] of [["source-in", painted], ["destination-over", rest]]) {
        Object.assign(context, {globalCompositeOperation: how, fillStyle: color});
        context.fillRect(...this.whole);
      }
    }
    /** As a PNG in base64. */
    async png() {
      const [canvas, context] = canvasOf(this.width, this.height);
      context.drawImage(this.canvas, 0, 0);
      this.flatten(context);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
      const read = new FileReader();
      await new Promise((done, failed) => { Object.assign(read, {onload: done, onerror: failed}); read.readAsDataURL(blob); });
      return read.result.split(",")[1];
    }
  }

  /** Regions, each of one plain color; black is none. */
  class Regions extends Mask {
    constructor(width, height, colors) {
      super(width, height);
      Object.assign(this, {colors, color: colors[0]});
    }
    begin(at, size, erases) {
      const wasBlank = this.blank;
      this.blank = false;
      super.begin(at, size, erases);
      this.stroke.wasBlank = wasBlank;
    }
    async load(url) {
      this.blank = false;
      this.context.drawImage(await loaded(url), 0, 0, this.width, this.height);
      this.plain(this.context);
      this.copy(this.canvas, this.earlier, this.whole);
    }
    ink(erases) { return [erases ? "destination-out" : "source-over", this.color]; }
    all(change) {
      const [how, color] = this.ink(change === "clear"), wasBlank = this.blank;
      this.blank = false;
      Object.assign(this.context, {globalCompositeOperation: how, fillStyle: color});
      this.context.fillRect(...this.whole);
      this.keep(this.whole, wasBlank);
    }
    /** Columns of one width, a color each. */
    split() {
      const wasBlank = this.blank, edge = (n) => Math.round(n * this.width / this.colors.length);
      this.blank = false;
      this.context.globalCompositeOperation = "source-over";
      this.colors.forEach((color, n) => { this.context.fillStyle = color; this.context.fillRect(edge(n), 0, edge(n + 1) - edge(n), this.height); });
      this.keep(this.whole, wasBlank);
    }
    /** Only plain colors: antialiased edges take the nearest one, black and half transparent pixels none. */
    plain(context) {
      const pixels = context.getImageData(...this.whole), data = pixels.data;
      const known = this.colors.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
      for (let n = 0; n < data.length; n += 4) {
        let best = null, least = data[n] ** 2 + data[n + 1] ** 2 + data[n + 2] ** 2;
        if (data[n + 3] >= 128) for (const each of known) {
          const away = (data[n] - each[0]) ** 2 + (data[n + 1] - each[1]) ** 2 + (data[n + 2] - each[2]) ** 2;
          if (away < least) [best, least] = [each, away];
        }
        [data[n], data[n + 1], data[n + 2], data[n + 3]] = best ? [...best, 255] : [0, 0, 0, 0];
      }
      context.putImageData(pixels, 0, 0);
    }
    flatten(context) {
      this.plain(context);
      Object.assign(context, {globalCompositeOperation: "destination-over", fillStyle: "#000"});
      context.fillRect(...this.whole);
    }
  }

  /** The image's position in the frame: its scale, and its upper left corner in pixels of the frame. */
  class View {
    constructor(frame, layer, width, height) { Object.assign(this, {frame, layer, width, height, fitted: true}); }
    fit() {
      const {clientWidth, clientHeight} = this.frame;
      this.least = Math.min(clientWidth / this.width, clientHeight / this.height);
      this.fitted = true;
      this.put(this.least, (clientWidth - this.width * this.least) / 2, (clientHeight - this.height * this.least) / 2);
    }
    put(scale, x, y) {
      const {clientWidth, clientHeight} = this.frame, margin = 40;  // some of the image stays in view
      Object.assign(this, {scale, x: within(x, margin - this.width * scale, clientWidth - margin), y: within(y, margin - this.height * scale, clientHeight - margin)});
      this.layer.style.transform = `translate(${this.x}px, ${this.y}px) scale(${scale})`;
    }
    move(x, y) { this.fitted = false; this.put(this.scale, this.x + x, this.y + y); }
    /** Zoom by a factor, so that the point (in the frame) stays where it is. */
    zoom(factor, [x, y] = [this.frame.clientWidth / 2, this.frame.clientHeight / 2]) {
      const scale = within(this.scale * factor, this.least * FARTHEST, NEAREST), by = scale / this.scale;
      this.fitted = false;
      this.put(scale, x - (x - this.x) * by, y - (y - this.y) * by);
    }
    inFrame(event) { const place = this.frame.getBoundingClientRect(); return [event.clientX - place.x, event.clientY - place.y]; }
    inImage(event) { const [x, y] = this.inFrame(event); return [(x - this.x) / this.scale, (y - this.y) / this.scale]; }
  }

  /** Strokes, pan and pinch by mouse, pen and fingers. `tool`: {ready, erases, size, holdsSpace}; `drawn` is called after each change. */
  const listen = (frame, mask, view, tool, drawn) => {
    const down = new Map();  // pointer -> where it was last
    let pans = false;
    const pinch = (event) => {
      const [other] = [...down.entries()].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const was = down.get(event.pointerId), now = view.inFrame(event), apart = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
      view.move((now[0] - was[0]) / 2, (now[1] - was[1]) / 2);
      view.zoom(apart(now) / Math.max(1, apart(was)), other.map((each, n) => (each + now[n]) / 2));
    };
    frame.addEventListener("contextmenu", (event) => event.preventDefault());
    frame.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      frame.focus({preventScroll: true});
      frame.setPointerCapture(event.pointerId);
      down.set(event.pointerId, view.inFrame(event));
      if (down.size > 1) { if (mask.busy) mask.drop(); pans = true; return drawn(); }
      pans = event.button === 1 || tool.holdsSpace;
      const eraser = event.button === 2 || event.button === 5;  // right button, or the eraser end of a pen
      if (!pans && tool.ready) mask.begin(view.inImage(event), tool.size, eraser || tool.erases);
      drawn();
    });
    frame.addEventListener("pointermove", (event) => {
      if (down.has(event.pointerId)) {
        const was = down.get(event.pointerId), now = view.inFrame(event);
        if (mask.busy) for (const each of event.getCoalescedEvents && event.getCoalescedEvents().length ? event.getCoalescedEvents() : [event]) mask.go(view.inImage(each));
        else if (down.size > 1) pinch(event);
        else if (pans) view.move(now[0] - was[0], now[1] - was[1]);
        down.set(event.pointerId, now);
      }
      drawn(event);
    });
    for (const kind of ["pointerup", "pointercancel"]) frame.addEventListener(kind, (event) => {
      down.delete(event.pointerId);
      if (mask.busy) mask.end();
      drawn();
    });
    frame.addEventListener("pointerleave", () => drawn(null));
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      const turned = event.deltaY * (event.deltaMode ? 33 : 1) / 100;  // notches of a wheel, from lines or pixels
      view.zoom(ZOOM ** within(-turned, -1, 1), view.inFrame(event));
      drawn(event);
    }, {passive: false});
  };

  const KEYS = {b: "brush", e: "erase", f: "fill", i: "invert", c: "clear", s: "split", "[": "smaller", "]": "larger", "+": "closer", "=": "closer", "-": "farther", 0: "fit"};
  const CONTROL = {z: "undo", y: "redo", s: "save", Enter: "next"};
  const ARROWS = {ArrowLeft: [MOVE, 0], ArrowRight: [-MOVE, 0], ArrowUp: [0, MOVE], ArrowDown: [0, -MOVE]};

  const TRAINS = {brush: "B: paints what counts", fill: "F: all white", invert: "I: white becomes black", clear: "C: all black",
    hint: "Clear parts train (white in the mask), red parts do not (black).", save: "Save mask", black: "All black: nothing of this image would train."};

  /** Paint a mask over an image, or regions.
      image   {url, name, width, height}: shown at any size; the mask has this one
      mask    the address of a gray mask or of regions to begin with, "" for none
      colors  of regions: [{color: "#rrggbb", name}]; none: a mask
      title   of the dialog        note   what to know before painting        words   {brush, fill, invert, clear, hint, save, black: of a mask without white} in place of those for training
      whites  the painted, white part covers the image, not the black one
      save    (PNG in base64) -> the problems that kept it from being saved, [] when it was; then the painter closes
      next    opens the next image's mask, for a button that saves what has changed first */
  atelier.paint = async ({image, mask: url, colors, title, note, words = TRAINS, whites, save, next}) => {
    const mask = colors ? new Regions(image.width, image.height, colors.map((each) => each.color)) : new Mask(image.width, image.height, whites);
    const longer = Math.max(image.width, image.height);
    const tool = {ready: false, erases: false, chosen: 0, size: Math.max(2, Math.round(longer / (colors ? 6 : 16))), holdsSpace: false}, largest = Math.max(8, Math.round(longer / 2));
    const choose = (n) => { Object.assign(tool, {erases: false, chosen: n}); mask.color = colors[n].color; };
    const buttons = {}, says = h("div", {class: "painter-says", role: "status"}, note);
    const button = (name, label, keys, more) => buttons[name] = h("button", {type: "button", class: "btn", title: keys, onclick: (event) => { acts[name](); if (event.detail) frame.focus({preventScroll: true}); }, ...more}, label);
    const range = (label, keys, attributes) => { const field = h("input", {type: "range", title: keys, ...attributes}), shown = h("output", {}); return [h("label", {}, label, field, shown), field, shown]; };
    const [sizes, size, sizeSaid] = range("Size", "[ and ]", {min: 1, max: largest, value: tool.size, oninput: () => resize(+size.value)});
    const [overlays, overlay, overlaySaid] = range("Overlay", "How strongly what is painted covers the image", {min: 10, max: 100, step: 5, value: 60, oninput: () => draw()});
    const ring = h("div", {class: "painter-ring", hidden: true});
    const shown = h("img", {alt: "", draggable: "false", width: image.width, height: image.height});
    const layer = h("div", {class: "painter-layer", style: `width: ${image.width}px; height: ${image.height}px`}, shown, mask.canvas);
    const frame = h("div", {class: "painter-frame", tabindex: 0, role: "application", "aria-label": `Mask over ${image.name}. Arrow keys move the view; painting needs a mouse, pen or finger.`}, layer, ring);
    const zoomed = h("span", {class: "painter-zoom"});
    const group = (name, ...children) => h("div", {class: "painter-group", role: "group", "aria-label": name}, children);
    const brushes = colors ? colors.map(({color, name}, n) => button(`color${n}`, [h("i", {class: "painter-color", style: `background: ${color}`}), name], `${n + 1}: paints this region`, {"aria-pressed": "false"}))
      : [button("brush", "Brush", words.brush, {"aria-pressed": "true"})];
    const box = h("dialog", {class: "atelier-dialog painter", "aria-label": title}, h("h2", {}, title), says,
      h("div", {class: "painter-tools"},
        group("Tool", ...brushes, button("erase", "Erase", "E, or the right mouse button", {"aria-pressed": "false"})),
        group("Brush", sizes, overlays),
        group("Whole mask", button("fill", "Fill", words.fill), colors ? button("split", "Columns", "S: side by side, one for each region") : button("invert", "Invert", words.invert), button("clear", "Clear", words.clear)),
        group("Steps", button("undo", "Undo", "Ctrl + Z"), button("redo", "Redo", "Ctrl + Shift + Z")),
        group("Zoom", button("farther", "−", "-, or the wheel", {"aria-label": "Zoom out"}), zoomed, button("closer", "+", "+, or the wheel", {"aria-label": "Zoom in"}), button("fit", "Fit", "0"))),
      frame,
      h("div", {class: "buttons"}, h("span", {class: "hint"}, `${words.hint} ${matchMedia("(pointer: coarse)").matches ? "Two fingers move and zoom" : "Space or the middle button moves"} the view. Painting needs a mouse, pen or finger.`),
        button("leave", "Cancel", "Escape"), next ? button("next", "Next image", "Ctrl + Enter: saves what has changed") : null, button("save", words.save, "Ctrl + S", {class: "btn primary"})));
    const view = new View(frame, layer, image.width, image.height);
    let saving = false, at = null, seen = "0 0 0";

    const brushed = () => colors ? colors.map((_, n) => [`color${n}`, !tool.erases && tool.chosen === n]) : [["brush", !tool.erases]];
    const isBlack = () => Boolean(words.black) && !mask.blank && mask.black;
    const tell = () => atelier.text(says, isBlack() ? words.black : mask.dirty ? "Not saved yet." : note || "");
    const draw = (event) => {
      const now = `${mask.steps} ${mask.done.length} ${mask.undone.length}`;
      if (now !== seen) { seen = now; tell(); }
      if (event !== undefined) at = event;
      mask.canvas.style.opacity = overlay.value / 100;
      atelier.text(overlaySaid, `${overlay.value}%`);
      atelier.text(sizeSaid, `${tool.size} px`);
      atelier.text(zoomed, `${Math.round(100 * view.scale)}%`);
      for (const [name, on] of [...brushed(), ["erase", tool.erases]]) atelier.attr(buttons[name], "aria-pressed", String(on));
      buttons.undo.disabled = !mask.done.length;
      buttons.redo.disabled = !mask.undone.length;
      buttons.save.disabled = mask.blank || saving || !tool.ready;
      frame.classList.toggle("moves", tool.holdsSpace);
      ring.hidden = !at || at.pointerType === "touch" || tool.holdsSpace;
      if (ring.hidden) return;
      const [x, y] = view.inFrame(at), across = tool.size * view.scale;
      Object.assign(ring.style, {width: `${across}px`, height: `${across}px`, transform: `translate(${x - across / 2}px, ${y - across / 2}px)`});
    };
    const resize = (to) => { tool.size = within(Math.round(to), 1, largest); size.value = tool.size; draw(); };
    const change = (work) => () => { if (tool.ready && !mask.busy && !saving) work(); draw(); };
    const lost = {title: "Discard this mask?", text: "What you have painted since opening it is lost.", ok: "Discard", danger: true};
    const acts = {
      ...Object.fromEntries((colors || []).map((_, n) => [`color${n}`, change(() => choose(n))])),
      brush: change(() => { tool.erases = false; }), erase: change(() => { tool.erases = true; }),
      smaller: () => resize(Math.min(tool.size - 1, tool.size / 1.2)), larger: () => resize(Math.max(tool.size + 1, tool.size * 1.2)),
      fill: change(() => mask.all("fill")), invert: change(() => { if (!colors) mask.all("invert"); }), split: change(() => { if (colors) mask.split(); }), clear: change(() => mask.all("clear")),
      undo: change(() => { if (mask.done.length) mask.swap(mask.done, mask.undone); }), redo: change(() => { if (mask.undone.length) mask.swap(mask.undone, mask.done); }),
      closer: () => { view.zoom(ZOOM); draw(); }, farther: () => { view.zoom(1 / ZOOM); draw(); }, fit: () => { view.fit(); draw(); },
      leave: async () => {
        if (!saving && (!mask.dirty || await atelier.dialog(lost))) box.close();
      },
      next: async () => {
        if (!next || saving) return;
        if (mask.dirty && !(mask.blank ? await atelier.dialog(lost) : await acts.save())) return;
        box.close();
        next();
      },
      save: async () => {
        if (buttons.save.disabled || mask.busy) return false;
        if (isBlack() && !await atelier.dialog({title: "Save a black mask?", text: words.black, ok: "Save", danger: true})) return false;
        saving = true;
        says.replaceChildren("Saving ...");
        draw();
        const problems = await mask.png().then(save).catch((error) => [{what: `The mask cannot be saved (${error.message})`, fix: "try again"}]);
        saving = false;
        if (!problems.length) { box.close(); return true; }
        says.replaceChildren(atelier.problems(problems));
        draw();
        return false;
      },
    };

    box.addEventListener("keydown", (event) => {
      if (colors && !event.ctrlKey && !event.metaKey && !event.altKey && colors[event.key - 1]) { acts[`color${event.key - 1}`](); event.preventDefault(); return; }
      const control = event.ctrlKey || event.metaKey, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const name = key === "Escape" ? "leave" : "[]".includes(key) ? KEYS[key] : event.altKey ? "" : control ? (key === "z" && event.shiftKey ? "redo" : CONTROL[key]) : KEYS[key];
      const arrow = event.target === frame && ARROWS[key];
      if (key === " " && event.target === frame) { tool.holdsSpace = true; draw(); event.preventDefault(); }
      if (arrow) { view.move(...arrow); draw(); event.preventDefault(); }
      if (!name) return;
      event.preventDefault();
      if (!event.repeat || !["save", "leave"].includes(name)) acts[name]();
    });
    box.addEventListener("keyup", (event) => { if (event.key === " ") { tool.holdsSpace = false; draw(); } });
    frame.addEventListener("blur", () => { tool.holdsSpace = false; draw(); });  // another window has the keyboard: the key is released there
    box.addEventListener("cancel", (event) => { event.preventDefault(); acts.leave(); });  // Back on a phone
    listen(frame, mask, view, tool, draw);
    const stays = (event) => { if (mask.dirty) event.preventDefault(); };
    const watch = new ResizeObserver(() => { if (view.fitted) view.fit(); draw(); });
    addEventListener("beforeunload", stays);
    box.addEventListener("close", () => { removeEventListener("beforeunload", stays); watch.disconnect(); });

    atelier.modal(box);
    view.fit();
    draw();
    watch.observe(frame);
    frame.focus();
    try {
      shown.src = image.url;
      if (url) await mask.load(url);
      tell();
      await shown.decode();
      tool.ready = true;
      box.dataset.ready = "yes";
    } catch { says.replaceChildren("The image or its mask cannot be shown."); }
    draw();
  };
})();
