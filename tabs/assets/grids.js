"use strict";
/* LoRAs that are dragged onto an axis of a grid. Cells of a grid: arrow keys go from cell to cell, a click enlarges, and there the arrow
   keys go on; an enlarged one can be used as an image of the gallery. */
(() => {
  const atelier = window.atelier, {h} = atelier;
  const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

  /** The next cell that is there in a direction, across tables where one ends. */
  const beside = (cell, [right, down]) => {
    const table = cell.closest("table"), row = +cell.dataset.row, column = +cell.dataset.column;
    const there = [...table.querySelectorAll("button.grid-cell")];
    const ahead = there.filter((each) => right ? +each.dataset.row === row && (each.dataset.column - column) * right > 0
      : +each.dataset.column === column && (each.dataset.row - row) * down > 0);
    const far = (each) => Math.abs(each.dataset.row - row) + Math.abs(each.dataset.column - column);
    if (ahead.length) return ahead.sort((one, other) => far(one) - far(other))[0];
    if (!down) return null;
    const tables = [...document.querySelectorAll(".grid-table")], next = tables[tables.indexOf(table) + down];
    const same = next ? [...next.querySelectorAll("button.grid-cell")].filter((each) => +each.dataset.column === column) : [];
    return same.length ? same[down > 0 ? 0 : same.length - 1] : null;
  };

  /** Bring the grid into view that was opened from another tab, once it is there. */
  atelier.toGrid = async () => {
    const head = await atelier.whenFound(() => atelier.openTab() === "Generate" && document.querySelector("#gen-table .grid-head"));
    if (head && head.getBoundingClientRect().top > innerHeight / 2) atelier.bringIntoView(head);
  };

  const enlarge = (cell) => {
    let now = cell;
    const make = (label, work, kind = "", more = {}) => h("button", {type: "button", class: `btn ${kind}`, onclick: work, ...more}, label);
    const image = h("img", {alt: ""}), words = h("p", {class: "hint", role: "status"}), download = h("a", {class: "btn"}, "Download");
    const previous = make("Previous", () => along(-1), "", {title: "The image before, row by row", "data-again": ""}), next = make("Next", () => along(1), "", {title: "The next image, row by row", "data-again": ""});
    const uses = atelier.imageSends.map(([act, label, kind]) => make(label, () => atelier.useImage(act, now.dataset.name, () => box.close()), kind));
    const box = h("dialog", {class: "grid-light", "aria-label": "Enlarged cell", tabindex: -1}, image, words, h("div", {class: "strip"}, previous, next, ...uses, download, h("span", {class: "grow"}), make("Close", () => box.close())));
    const here = () => { if (!now.isConnected) now = document.querySelector(`button.grid-cell[data-name="${CSS.escape(now.dataset.name)}"]`) || now; return now.isConnected; };
    const step = (key) => { const to = here() && beside(now, STEPS[key]); if (to) show(to); };
    const inOrder = (by) => { const cells = [...document.querySelectorAll("button.grid-cell")]; return cells[cells.indexOf(now) + by]; };
    const along = (by) => { const to = here() && inOrder(by); if (to) show(to); };
    const show = (cell) => {
      now = cell;
      image.src = download.href = now.dataset.full;
      image.alt = words.textContent = now.title;
      download.download = now.dataset.name.replace(/^grid:/, "").replace("/", "_");
      previous.disabled = !inOrder(-1);
      next.disabled = !inOrder(1);
      if (document.activeElement.disabled) box.focus();  // a disabled button would take no key
    };
    box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
    box.addEventListener("keydown", (event) => {
      if (!STEPS[event.key]) return;
      event.preventDefault();
      step(event.key);
    });
    box.addEventListener("close", () => { if (here()) now.focus(); });
    show(cell);
    atelier.modal(box);
    box.focus();
  };

  /* The image of a LoRA's card (tabs/generate/loras.py) is dragged onto an axis that is empty or of LoRAs. */
  const LORA = "application/x-atelier-lora";
  const axisAt = ({target, dataTransfer}) => {
    const axis = dataTransfer.types.includes(LORA) && target.closest && target.closest(".grid-axis");
    return axis && (axis.querySelector(".axis-adds[data-of=LoRA]") || [...axis.querySelectorAll("input, textarea[id]")].every((field) => !field.value)) ? axis : null;
  };
  const aim = (axis) => { for (const each of document.querySelectorAll(".grid-axis")) each.classList.toggle("aimed", each === axis); };
  atelier.on("pointerdown", "[data-lora] > .lora-thumb", (thumb) => { thumb.draggable = true; });
  document.addEventListener("dragstart", ({target, dataTransfer}) => {
    const thumb = target.closest && target.closest("[data-lora] > .lora-thumb");
    if (thumb) dataTransfer.setData(LORA, thumb.parentElement.dataset.lora);
  });
  document.addEventListener("dragover", (event) => {
    const axis = axisAt(event);
    aim(axis);
    if (axis) event.preventDefault();
  });
  document.addEventListener("dragend", () => aim(null));
  document.addEventListener("drop", (event) => {
    const axis = axisAt(event), field = axis && axis.querySelector("[data-act=file_add]");
    aim(null);
    if (!field) return;
    event.preventDefault();
    field.value = event.dataTransfer.getData(LORA);
    field.dispatchEvent(new Event("change", {bubbles: true}));
  });

  atelier.on("click", "button.grid-cell", enlarge);
  atelier.on("keydown", "button.grid-cell", (cell, event) => {
    if (!STEPS[event.key]) return;
    event.preventDefault();
    const next = beside(cell, STEPS[event.key]);
    if (next) next.focus();
  });
})();
