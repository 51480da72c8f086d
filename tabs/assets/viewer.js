"use strict";
/* One image over the whole page: through a list by the arrow keys, stars, trash, another image next to it or, while a key is held, in its place, zoom, and what it can be
   used for. The list is the one of the moment it was opened. gallery.js opens it. */
(() => {
  const atelier = window.atelier, {h, text, attr, show} = atelier;
  const STARS = [1, 2, 3, 4, 5], BESIDE = 150, CLOSEST = 8, CLICK = 350, SWIPE = 40;
  const SENDS = [["use", "Use settings", "primary"], ["vary", "Vary", ""], ["begin", "Image to image", ""], ["inpaint", "Inpaint", ""], ["control", "Control image", ""], ["upscale", "Upscale", ""]];

  atelier.imageSends = SENDS;

  /** second: an image that is shown next to it; list: names; thumb(name): what is shown until the image itself is there; ask, star, remove, undo, send, closed: the gallery's */
  atelier.imageViewer = ({name: first, marked: second = "", list, thumb, ask, star, remove, undo, send, closed}) => {
    const known = new Map();  // name -> the server's answer
    let name = "", before = "", marked = second, asked = 0, scale = 1, place = [50, 50];

    const make = (words, work, more) => h("button", {type: "button", class: "btn", onclick: work, ...more}, words);
    const own = h("img", {class: "own", alt: ""}), other = h("img", {class: "other", alt: ""}), base = h("img", {alt: "Made by the base model"});
    const lens = h("div", {class: "lens main"}, own, other), caption = h("figcaption", {});
    const twin = h("figure", {hidden: true}, h("div", {class: "lens"}, base), h("figcaption", {}, "base model"));
    const beside = h("img", {alt: ""}), besides = h("figcaption", {}), pair = h("figure", {class: "beside", hidden: true}, h("div", {class: "lens"}, beside), besides);
    const views = h("div", {class: "views", tabindex: 0, role: "group", "aria-label": "Image"}, twin, pair, h("figure", {}, lens, caption));
    const previous = make("Previous", () => step(-1), {title: "Left", "data-again": ""}), next = make("Next", () => step(1), {title: "Right", "data-again": ""});
    const where = h("span", {class: "hint", role: "status"});
    const rates = h("div", {class: "rates", role: "group", "aria-label": "Stars"}, STARS.map((stars) =>
      h("button", {type: "button", title: `${stars} (0 removes)`, "aria-label": `${stars} star${stars > 1 ? "s" : ""}`, onclick: () => star([name], (known.get(name) || {}).stars === stars ? 0 : stars)}, "☆")));
    const mark = make("Mark", () => { marked = marked === name ? "" : name; drawCompare(); }, {title: "M: compare others with this image", "aria-pressed": "false"});
    const compares = h("span", {id: "viewer-compares"});
    const compare = make("Compare", ({detail}) => { if (!detail) keep(!kept); }, {"aria-pressed": "false"});  // by mouse: below
    compare.append(compares);
    const settings = make("Settings", () => { bare(!box.classList.contains("bare")); }, {"aria-pressed": "true"});
    const away = make("Move to trash", () => trash(), {class: "btn away", title: "Delete; Ctrl+Z brings it back"});
    const about = h("div", {class: "light-about"});
    const box = h("dialog", {class: "viewer", "aria-label": "Image viewer"},
      h("div", {class: "bar-top"}, previous, next, where, rates, mark, compare, h("span", {class: "grow"}), away, settings,
        make("Close", () => box.close(), {title: "Esc"})), views, about);
    const bare = (on) => {
      box.classList.toggle("bare", on);
      attr(settings, "aria-pressed", String(!on));
      atelier.remember("atelier-viewer-bare", on ? "1" : "");
    };

    /* ---- going through the list ---- */

    const look = async (of) => {
      if (!known.has(of)) {
        const found = await ask({act: "open", name: of});
        if (found) known.set(of, found);
      }
      return known.get(of);
    };
    const go = async (to) => {
      const mine = ++asked;
      if (name && name !== to) before = name;
      name = to;
      zoom(1);
      hold(false);
      if (!known.has(to) && thumb(to)) attr(own, "src", thumb(to));
      drawBar();
      const found = await look(to);
      if (mine !== asked || !found) return;
      draw(found);
      setTimeout(async () => {  // the ones beside it are fetched while this one is looked at
        for (const by of [1, -1]) {
          const near = mine === asked && list[list.indexOf(name) + by], there = near && await look(near);
          if (there) new Image().src = there.url;
        }
      }, BESIDE);
    };
    const step = (by) => { const to = list[list.indexOf(name) + by]; if (to) go(to); };
    const drawBar = () => {
      const at = list.indexOf(name);
      previous.disabled = at <= 0;
      next.disabled = at >= list.length - 1;
      text(where, `${(at + 1).toLocaleString("en")} of ${list.length.toLocaleString("en")}`);
      drawCompare();
      goOn();
    };
    /** A control that is gone or disabled would take no key. */
    const goOn = () => { const active = document.activeElement; if (active === document.body || active.disabled) views.focus(); };
    const draw = (found) => {
      attr(own, "src", found.url);
      attr(own, "alt", found.says);
      attr(views, "aria-label", [found.says, found.seed === null ? "" : `seed ${found.seed}`, found.own].filter(Boolean).join(", "));
      if (found.base) attr(base, "src", found.base);
      show(twin, found.base);
      rate(found.stars);
      const template = h("div", {}), held = about.contains(document.activeElement) && document.activeElement.textContent;
      template.innerHTML = found.about;  // the server has escaped it
      about.replaceChildren(h("div", {class: "actions"},
        SENDS.filter(([act]) => !["use", "vary"].includes(act) || found.settings).map(([act, words, kind]) => make(words, () => send(act, found.name, () => box.close()), {class: `btn ${kind}`})),
        ...[["prompt", found.prompt], ["seed", found.seed]].filter(([, words]) => words).map(([of, words]) => make(`Copy ${of}`, null, {"data-copy": words})),
        h("a", {class: "btn", href: found.url, download: found.file}, "Download"), h("a", {class: "btn", href: found.url, target: "_blank", rel: "noopener"}, "Open full size")), template);
      if (held) ([...about.querySelectorAll("button, a")].find((each) => each.textContent === held) || views).focus();
      drawCompare();
    };
    const rate = (stars) => {
      if (known.has(name)) known.get(name).stars = stars;
      [...rates.children].forEach((node, n) => { attr(node, "data-on", n < stars); text(node, n < stars ? "★" : "☆"); attr(node, "aria-pressed", String(n + 1 === stars)); });
    };
    const trash = async () => {
      const of = name;
      if (!await remove([of])) return;
      const at = list.indexOf(of);  // keys go on meanwhile
      list.splice(at, 1);
      gone.set(of, at);
      if (!list.length) return box.close();
      if (name === of) go(list[Math.min(at, list.length - 1)]); else drawBar();
      views.focus();
    };
    const gone = new Map();  // name -> its place in the list

    /* ---- comparing ---- */

    /** [what it is compared with, its address, its name]: the marked image, the one it began with, the twin of the base model, the same image of another
        model, or the image before. */
    const against = () => {
      const found = known.get(name) || {}, [model, theirs] = found.other || [];
      if (marked && marked !== name) return [marked === second ? "the other image" : "the marked image", (known.get(marked) || {}).url, marked];
      if ((found.initial || {}).url) return ["the initial image", found.initial.url];
      if (found.base) return ["the base model's image", found.base];
      if (theirs) return [`the image of ${model}`, theirs];
      return before && before !== name && known.has(before) ? ["the image before", known.get(before).url, before] : ["", ""];
    };
    const drawCompare = () => {
      const [words, url] = against(), {file} = (known.get(name) || {}).initial || {};
      const none = file ? `The initial image ${file} is no longer there` : "No image with the same settings, from the base model or another, was found";
      compare.disabled = !url;
      if (url) attr(other, "src", url);
      drawBeside();
      text(compares, words ? ` with ${words}` : "");
      attr(compare, "title", url ? `Click to see ${words} next to it, or hold C or Space to see it in its place` : `${none}. Mark an image (M) to compare others with it.`);
      attr(mark, "aria-pressed", String(!!marked && marked === name));
    };
    const hold = (on) => {
      const [words, url] = against(), twins = url === (known.get(name) || {}).base;  // which stands beside it already
      const shown = !!(url && (on || (kept && twins)));
      box.classList.toggle("compares", shown);
      attr(compare, "aria-pressed", String(shown || kept));
      away.disabled = shown;  // another image is seen than the one that would go
      goOn();
      if (shown) text(caption, `Comparing: ${words}`);
      else drawBeside();
    };
    let kept = false, pressed = 0;  // beside it until the next click; when the mouse button went down
    const factsOf = (found) => found ? [found.seed === null ? "" : `seed ${found.seed}`, found.own].filter(Boolean) : [];
    const drawBeside = () => {
      const [words, url, of] = against(), found = known.get(name) || {}, shown = kept && Boolean(url) && url !== found.base;
      show(pair, shown);
      if (shown) attr(beside, "src", url);
      attr(beside, "alt", words);
      text(besides, shown ? [words, ...factsOf(known.get(of))].join(" · ") : "");
      text(caption, shown ? ["this image, whose settings are shown", ...factsOf(found)].join(" · ") : found.base ? found.own : "");
    };
    const keep = (on) => { kept = on; hold(false); };
    let holds = 0;
    compare.addEventListener("pointerdown", () => { pressed = Date.now(); holds = setTimeout(() => hold(true), CLICK / 2); });
    const letGo = () => { clearTimeout(holds); pressed = 0; };
    compare.addEventListener("pointerup", () => { const click = pressed && Date.now() - pressed < CLICK; if (pressed) keep(click ? !kept : kept); letGo(); });
    for (const kind of ["pointerleave", "pointercancel", "blur"]) compare.addEventListener(kind, () => { if (pressed) hold(false); letGo(); });

    /* ---- zoom: the pointer's place stays where it is ---- */

    const zoom = (to) => {
      scale = Math.min(Math.max(to, 1), CLOSEST);
      for (const image of [own, other, base, beside]) {
        image.style.transform = scale > 1 ? `scale(${scale})` : "";
        image.style.transformOrigin = `${place[0]}% ${place[1]}%`;
        image.parentElement.classList.toggle("near", scale > 1);
      }
    };
    const point = (event) => {
      const glass = event.target.closest(".lens"), within = glass && glass.getBoundingClientRect();
      if (glass) place = [100 * (event.clientX - within.x) / within.width, 100 * (event.clientY - within.y) / within.height];
      return glass;
    };
    views.addEventListener("click", (event) => { if (point(event)) zoom(scale > 1 ? 1 : Math.max(2, own.naturalWidth / Math.max(1, lens.clientWidth))); views.focus(); });
    views.addEventListener("pointermove", (event) => { if (scale > 1 && point(event)) zoom(scale); });
    views.addEventListener("wheel", (event) => { event.preventDefault(); if (point(event)) zoom(scale * (event.deltaY < 0 ? 1.25 : 0.8)); }, {passive: false});

    /** A finger that goes sideways over an image that is seen whole leads to the next one. */
    let touched = null;
    views.addEventListener("pointerdown", (event) => { touched = event.isPrimary && event.pointerType === "touch" && scale === 1 ? event : null; });
    views.addEventListener("pointerup", (event) => {
      const right = touched ? event.clientX - touched.clientX : 0, down = touched ? event.clientY - touched.clientY : 0;
      touched = null;
      if (Math.abs(right) > SWIPE && Math.abs(right) > 2 * Math.abs(down)) step(right < 0 ? 1 : -1);
    });
    views.addEventListener("pointercancel", () => { touched = null; });

    /* ---- keys ---- */

    box.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") { event.preventDefault(); if (!event.repeat) undo(); }
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const onControl = event.target.closest("button, a"), key = event.key;
      if (key === "ArrowLeft" || key === "ArrowUp") step(-1);
      else if (key === "ArrowRight" || key === "ArrowDown") step(1);
      else if (key === "Home") go(list[0]);
      else if (key === "End") go(list[list.length - 1]);
      else if (/^[0-5]$/.test(key)) star([name], Number(key));
      else if (key === "Delete" && !away.disabled) trash();
      else if (key === "c" || (key === " " && (!onControl || onControl === compare))) hold(true);
      else if (key === "m") mark.click();
      else return;
      event.preventDefault();
    });
    box.addEventListener("keyup", (event) => {
      if (event.key !== "c" && event.key !== " ") return;
      hold(false);
      if (event.target === compare) event.preventDefault();  // no click
    });
    const narrow = matchMedia("(max-width: 900px)"), low = matchMedia("(max-height: 500px)");
    const fit = () => { box.classList.toggle("narrow", narrow.matches || low.matches); box.classList.toggle("low", low.matches); };
    for (const query of [narrow, low]) query.addEventListener("change", fit);
    fit();
    box.addEventListener("close", () => { for (const query of [narrow, low]) query.removeEventListener("change", fit); closed(name); });
    if (atelier.recall("atelier-viewer-bare")) bare(true);
    atelier.modal(box);
    views.focus();
    go(first);
    if (second) look(second).then(() => { keep(true); drawCompare(); });

    return {
      box,
      rate,
      get name() { return name; },
      focus: () => views.focus(),
      /** Images that an undo has brought back stand where they were. */
      restored: (last, found) => {
        for (const of of [...found].reverse()) if (!list.includes(of)) list.splice(gone.get(of) ?? 0, 0, of);
        if (found.length) go(found[0]);
        views.focus();
      },
    };
  };
})();
