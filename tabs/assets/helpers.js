"use strict";
/* What every file of the page's script uses: elements, texts, numbers, files, lists of problems. Read before the others. */
(() => {
  const atelier = window.atelier;

  /** An element: h("button", {class: "btn", onclick: f, "aria-label": "Close"}, "text", child, ...). Texts are never HTML. */
  const SVG = new Set(["svg", "path", "line", "rect", "circle", "text", "g"]);
  atelier.h = (tag, attributes, ...children) => {
    const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "class") node.setAttribute("class", value);
      else if (name === "value" && "value" in node) node.value = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) node.append(child);
    return node;
  };
  const h = atelier.h;
  /** A name's parts, between which a line may break: rather there than within a word. */
  atelier.parted = (name) => name.split(/(?<=[_-])/).flatMap((part, n) => n ? [h("wbr"), part] : [part]);
  /** A name shortened before its last `end` letters, which tell checkpoints apart, as `middle` of markup.py does: before whole words. */
  atelier.middle = (text, end) => {
    let at = Math.max(0, text.length - end), space = text.lastIndexOf(" ", at);
    if (/\d/.test(text.charAt(space + 1))) space = text.lastIndexOf(" ", space - 1);
    if (text.indexOf(" ", at - 1) >= 0 && space > 0 && at - space <= 14) at = space - 1;
    while (at && /\s|^\d\d$/.test(text.slice(at - 1, at + 1))) at -= 1;
    return h("span", {class: "cut"}, h("span", {}, text.slice(0, at)), h("span", {}, text.slice(at)));
  };
  atelier.byId = (id) => document.getElementById(id);
  /** What this browser keeps of the page under a name, of this window alone where `session`: nothing where storage is blocked. */
  const storage = (session) => session ? sessionStorage : localStorage;
  atelier.recall = (name, session) => { try { return storage(session).getItem(name) || ""; } catch { return ""; } };
  atelier.remember = (name, value, session) => { try { storage(session).setItem(name, value); } catch { /* it holds until the page is closed */ } };

  /** Put texts, attributes and children in only where they differ, so that nothing flickers and selections stay. */
  atelier.text = (node, text) => { if (node && node.textContent !== text) node.textContent = text; };
  atelier.show = (node, shown) => { if (node && node.hidden === !!shown) node.hidden = !shown; };
  /** What is not offered now keeps its place, so that a click that is aimed at it never hits another control. */
  atelier.slot = (node, offered) => { if (node) node.classList.toggle("off", !offered); };
  atelier.attr = (node, name, value) => {
    if (!node) return;
    if (value === null || value === undefined || value === false) { if (node.hasAttribute(name)) node.removeAttribute(name); }
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  };

  /** Whether a node is not drawn of this data yet; from now on it is. */
  atelier.differs = (node, data) => {
    const key = JSON.stringify(data ?? null);
    return node.dataset.key !== key && !!(node.dataset.key = key);
  };
  /** Put HTML of the server in only where it differs, so that what is read or held by the keyboard stays. */
  atelier.put = (holder, html) => {
    if (!holder || holder.dataset.html === html) return;
    const active = holder.contains(document.activeElement) ? document.activeElement : null, {side, act, arg = ""} = active ? active.dataset : {};
    const again = active && active.id ? `#${active.id}` : side ? `[data-side="${side}"]` : act ? `[data-act="${act}"][data-arg="${CSS.escape(arg)}"]` : "";
    holder.dataset.html = html;
    holder.innerHTML = html;
    const twin = again && holder.querySelector(again);
    if (twin) twin.focus({preventScroll: true});
  };
  /** By the id of a board: what its messages say beside the control, as of a form below a list, what is selected there. */
  atelier.chosen = {};
  /** `work(node, event)` for each event of a kind in an element that matches. */
  atelier.on = (kind, selector, work) => document.addEventListener(kind, (event) => {
    const node = event.target.closest && event.target.closest(selector);
    if (node) work(node, event);
  });
  /** One path into a field, as if it were typed: a list gets one more line. */
  atelier.takePath = (field, path) => {
    const before = field.tagName === "TEXTAREA" ? field.value.trim() : "";
    field.value = before ? `${before}\n${path}` : path;
    field.dispatchEvent(new Event("change", {bubbles: true}));
  };

  /** Put a text into the clipboard. Pages of other machines over http have no navigator.clipboard. */
  atelier.copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const field = h("textarea", {value: text, readonly: true, style: "position: fixed; opacity: 0"});
      const before = document.activeElement;
      document.body.append(field);
      field.select();
      const copied = document.execCommand("copy");
      field.remove();
      if (before) before.focus();
      return copied;
    }
  };

  /** Let screen readers say a text, on whichever tab; nothing is seen. */
  atelier.hear = (words) => {
    atelier.seatMessages();
    const line = h("p", {}, words);
    atelier.byId("heard").append(line);
    setTimeout(() => line.remove(), 5000);
  };
  /* Buttons that copy their text say so for a moment, to screen readers too. */
  const copying = new WeakSet();
  atelier.on("click", "[data-copy]", async (button) => {
    if (copying.has(button)) return;
    copying.add(button);
    const words = button.textContent;
    button.textContent = await atelier.copy(button.dataset.copy) ? "Copied" : "Cannot copy";
    atelier.hear(button.textContent);
    setTimeout(() => { button.textContent = words; copying.delete(button); }, 1200);
  });

  /** Save a text or Blob as a file of the browser's machine. */
  atelier.download = (name, content) => {
    const link = h("a", {href: URL.createObjectURL(new Blob([content])), download: name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  /** Seconds as m:ss or h:mm:ss. */
  atelier.clock = (seconds) => {
    if (seconds === null || seconds === undefined || !isFinite(seconds) || seconds < 0) return "–";
    const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor((whole % 3600) / 60);
    return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
  };
  atelier.bytes = (count) => {
    if (!isFinite(count)) return "–";
    for (const unit of ["bytes", "kB", "MB", "GB"]) {
      if (Math.abs(count) < 1000) return unit === "bytes" ? `${count} bytes` : `${count.toFixed(count < 100 ? 1 : 0)} ${unit}`;
      count /= 1000;
    }
    return `${count.toFixed(1)} TB`;
  };
  /** Memory, in the GB that cards and machines are sold by (2 to the 30th). */
  atelier.memory = (count) => {
    const size = Math.abs(count);
    return size < 2 ** 29 ? `${Math.max(1, Math.round(count / 2 ** 20))} MB` : `${(count / 2 ** 30).toFixed(1)} GB`;
  };
  /** A number with four figures: 0.1342, 1.2e-4. */
  atelier.number = (value) => {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(+value.toPrecision(4));
  };
  /** A loss: four decimals, small and huge ones with few figures, as in Runs (`loss_text`). */
  atelier.loss = (value) => value === null || !isFinite(value) || Math.abs(value) < 0.01 || Math.abs(value) >= 1e5 ? atelier.number(value) : value.toFixed(4);
  atelier.pace = (seconds) => seconds > 0 ? `${seconds < 10 ? seconds.toFixed(2) : seconds.toFixed(1)} s/step` : "";

  /** Words as a sentence: a capital in front, a stop behind. */
  atelier.sentence = (words) => words ? words[0].toUpperCase() + words.slice(1) + (/[.?!]$/.test(words) ? "" : ".") : "";
  /** Links to the fields that a problem names ("memory.fp8_base, fp8_base_unet"), or the place in words. */
  const leads = (where) => {
    let group = "";
    const paths = where.split(", ").map((name) => { if (name.includes(".")) group = name.split(".")[0]; return name.includes(".") ? name : `${group}.${name}`; });
    if (!paths.every((path) => atelier.fields[path])) return h("span", {class: "where"}, paths.every((path) => atelier.titles[path]) ? paths.map((path) => atelier.titles[path]).join(", ") : where);
    return h("span", {}, paths.flatMap((path, n) => [n ? ", " : null,
      h("button", {type: "button", class: "link", onclick: () => atelier.goToField(path)}, `${n ? "" : "Go to "}${atelier.fields[path].title}`)]));
  };
  /* What a click does about problems of a kind: [which, its words, the action]. */
  const REMEDIES = [
    [(problem) => problem.remedy === "dataset.skip_broken" && problem.level === "error", (count) => `Skip ${count} broken image${count === 1 ? "" : "s"}`, "leave_out"],
    [(problem) => problem.code === "control.no-folder", () => "Make control images", "make_pairs"],
    [(problem) => problem.code === "copy.missing-folder", () => "Create the folder and copy", "copy_create"],
    [(problem) => problem.code === "prompts.no-control-image", () => "Use images with control images as samples", "sample_pairs"],
  ];
  atelier.does = {copy_create: () => atelier.command("copy_create", {ask: atelier.ask()})};  // actions outside the form
  /** The buttons that do what a list of problems asks for, where one click fixes them all. */
  atelier.remedies = (list) => REMEDIES.flatMap(([is, words, act]) => {
    const count = list.filter(is).length;
    return count ? [h("button", {type: "button", class: "btn remedy", onclick: () => (atelier.does[act] || atelier.act)(act)}, words(count))] : [];
  });
  /** A list of problems: what, where, fix. */
  atelier.problems = (list) => h("ul", {class: "problems"}, list.map((problem) =>
    h("li", {class: `problem ${problem.level || "error"}`},
      h("span", {class: "kind"}, problem.level === "advice" ? "Advice" : problem.level === "warning" ? "Warning" : "Error"),
      h("div", {},
        h("strong", {}, problem.what),
        problem.where ? leads(problem.where) : null,
        problem.fix ? h("span", {class: "fix"}, atelier.sentence(problem.fix)) : null))));

  /* What HTML of the server leaves to be drawn here (tabs/markup.py, `client_rendered`) is drawn before anyone sees it. */
  atelier.draws = {problems: (node, list) => node.replaceWith(atelier.problems(list))};
  new MutationObserver(() => { for (const node of document.querySelectorAll("[data-draws]:empty")) atelier.draws[node.dataset.draws](node, JSON.parse(node.dataset.of)); })
    .observe(document.documentElement, {childList: true, subtree: true});

  /* Gradio names the button of its drop areas in other words than stand on it. */
  new MutationObserver(() => { for (const node of document.querySelectorAll(".upload-container[aria-label]")) node.removeAttribute("aria-label"); })
    .observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ["aria-label"]});
})();
