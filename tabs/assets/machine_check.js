"use strict";
/* The card of Tools that checks this machine: a button, how far it is, and a table of what was found. */
(() => {
  const atelier = window.atelier, {h, text} = atelier;
  const part = (name) => document.querySelector(`[data-machine-check="${name}"]`);

  const row = (line) => h("tr", {class: `check-${line.state}`, "data-item": line.name},
    h("th", {scope: "row"}, line.title),
    h("td", {class: "state"}, line.words), h("td", {}, line.found.map((words) => h("div", {}, words))));
  const table = (group, lines) => h("table", {}, h("caption", {}, group),
    h("colgroup", {}, ["item", "state", "found"].map((name) => h("col", {class: `check-${name}`}))),
    h("thead", {}, h("tr", {}, ["Item", "State", "Found"].map((name) => h("th", {scope: "col"}, name)))),
    h("tbody", {}, lines.filter((line) => line.group === group).map(row)));

  atelier.parts.machine_check = (data) => {
    const start = part("start");
    if (!start) return;
    start.disabled = data.running;
    atelier.slot(part("cancel"), data.running);
    part("cancel").disabled = false;
    atelier.slot(part("bar"), data.running);
    part("bar").value = data.share;
    atelier.slot(part("file"), !!data.file);
    atelier.attr(part("file"), "href", data.file || null);
    atelier.attr(part("file"), "download", data.file ? "atelier-check.json" : null);
    text(part("words"), data.words);
    part("lines").replaceChildren(...[...new Set(data.lines.map((line) => line.group))].map((group) => table(group, data.lines)));
  };

  atelier.on("click", "button[data-machine-check]", (button) => {
    const name = button.dataset.machineCheck;
    if (name === "cancel") atelier.once(button);
    atelier.command(name === "start" ? "machine_check" : "machine_check_cancel", {ask: atelier.ask()});
  });
})();
