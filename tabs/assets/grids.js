"use strict";
/* Cells of a grid: arrow keys go from cell to cell, a click enlarges, and there the arrow keys go on. */
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

  const enlarge = (cell) => {
    let now = cell;
    const image = h("img", {alt: ""}), words = h("p", {class: "hint"}), close = h("button", {type: "button", class: "btn"}, "Close");
    const box = h("dialog", {class: "grid-light", "aria-label": "Enlarged cell"}, image, h("div", {class: "strip"}, words, close));
    const show = (next) => {
      now = next;
      image.src = now.dataset.full;
      image.alt = words.textContent = now.title;
    };
    close.addEventListener("click", () => box.close());
    box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
    box.addEventListener("keydown", (event) => {
      if (!STEPS[event.key]) return;
      event.preventDefault();
      if (!now.isConnected) now = document.querySelector(`button.grid-cell[data-full="${CSS.escape(now.dataset.full)}"]`) || now;
      const next = now.isConnected && beside(now, STEPS[event.key]);
      if (next) show(next);
    });
    box.addEventListener("close", () => { if (now.isConnected) now.focus(); });
    show(cell);
    atelier.modal(box);
  };

  document.addEventListener("click", (event) => {
    const cell = event.target.closest && event.target.closest("button.grid-cell");
    if (cell) enlarge(cell);
  });
  document.addEventListener("keydown", (event) => {
    const cell = STEPS[event.key] && event.target.closest && event.target.closest("button.grid-cell");
    if (!cell) return;
    event.preventDefault();
    const next = beside(cell, STEPS[event.key]);
    if (next) next.focus();
  });
})();
