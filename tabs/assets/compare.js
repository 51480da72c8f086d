"use strict";
/* Two to four runs compared. Which ones stands in the address (#Runs/<A>/<B>); the server sends the texts, the curves are drawn here. */
(() => {
  const atelier = window.atelier, {h, text, show, byId} = atelier;
  const UNITS = {
    smooth: "Training loss by step, smoothed over 20 steps. It depends on each run's images, noise and timesteps.",
    corrected: "Loss by step, divided by the run's own mean at the same timesteps; 1 is average. It shows whether each run still improves, not which is lower.",
  };
  const KINDS = ["smooth", "second", "fourth", "fifth"];
  let runs = null, chart = null, curves = null, begins = false;

  const seen = () => { const title = document.querySelector("#runs-main .run-head h2"); return title ? title.dataset.land : ""; };
  let opens = null;  // the run that the address asked for, until it is open; "" for the list
  /** The runs in the address: those that are compared, or the open one. */
  atelier.compared = () => runs || [opens ?? seen()].filter(Boolean);
  /** Open the run that an address names, "" for the list. */
  atelier.openRun = async (name) => {
    if (name === (opens ?? seen())) return;
    opens = name;
    const head = await atelier.whenFound(() => document.querySelector("#runs-main :is(h2, h3)"));
    if (opens !== name) return;
    if (head) {
      const press = h("button", {type: "button", hidden: true, "data-act": name ? "open" : "back", "data-arg": name});
      head.append(press);
      press.click();
      press.remove();
      await atelier.whenFound(() => opens !== name || seen() === name);
      if (opens !== name) return;
    }
    opens = null;
    atelier.keepAddress(true);  // one that is gone is no page of the history
  };
  atelier.want(() => runs ? {compare: runs} : {});
  /** Compare these, or none; the address follows. */
  atelier.compareRuns = (names) => {
    const wanted = names.length >= 2 && names.every(Boolean) ? names.slice(0, 4) : null;
    const inside = document.activeElement && document.activeElement.closest("#compare, #runs-main");
    document.body.classList.toggle("comparing", !!wanted);
    if (JSON.stringify(wanted) === JSON.stringify(runs)) return;
    begins = !runs && !!inside;
    const back = !wanted && inside && document.querySelector("#runs-main input");
    if (back) back.focus();
    runs = wanted;
    delete atelier.have.compare;
    show(byId("compare-found"), false);
    show(byId("compare-reading"), true);
    if (runs) { atelier.command("look", {ask: atelier.ask()}); scrollTo(0, 0); }
  };

  const put = (name, html) => atelier.put(document.querySelector(`#compare [data-part="${name}"]`), html);

  atelier.parts.compare = (data) => {
    if (!byId("compare")) { delete atelier.have.compare; return; }  // the tab is being built
    if (!runs || data.runs.join("/") !== runs.join("/")) return;
    put("head", data.head);
    if (begins) document.querySelector("#compare h2").focus();  // what led here is hidden now
    begins = false;
    show(byId("compare-reading"), data.reading);
    byId("compare-gone").replaceChildren(...(data.gone ? [atelier.problems(data.gone)] : []));
    show(byId("compare-found"), !!data.html);
    if (!data.html) return;
    for (const [name, html] of Object.entries(data.html)) put(name, html);
    curves = data.curves;
    draw();
  };

  const draw = () => {
    if (!chart || !chart.holder.isConnected) begin();
    const kind = byId("compare-kind").value, held = kind === "smooth";
    const lines = curves.map((run, n) => ({name: `${"ABCD"[n]} ${held ? "smoothed" : "by timesteps"}`, ...run[kind], kind: KINDS[n]}));
    const points = held ? curves.map((run, n) => ({name: `${"ABCD"[n]} held-out`, ...run.validation, kind: `${KINDS[n]} held`})).filter((line) => line.steps.length) : [];
    const drawn = lines.filter((line) => line.steps.length);
    const steps = [...new Set(drawn.flatMap((line) => line.steps))].sort((a, b) => a - b);
    chart.set({steps, lines: drawn, points, total: Math.max(...curves.map((run) => run.total))});
    byId("compare-legend").replaceChildren(...[...drawn, ...points].flatMap((line) => [h("span", {}, h("i", {class: line.kind}), line.name), " "]));
    text(byId("compare-units"), `${UNITS[kind]}${points.length ? " Compare runs by the validation loss." : ""}`);
  };
  const begin = () => {
    chart = new atelier.Chart(byId("compare-chart"), {label: "Loss of the runs"});
    chart.follow(byId("compare-log"));
    byId("compare-kind").addEventListener("change", draw);
  };

  atelier.on("click", "#compare [data-grid-of]", (node) => { if (runs) { atelier.once(node); atelier.command("grid_of_runs", {runs, ask: atelier.ask()}); atelier.toGrid(); } });
  /* Who leaves by "All runs" is done with them: none stays selected. Back leads to the selection. */
  atelier.on("click", "#compare .run-head a", () => { const clear = document.querySelector("#runs-main [data-act=unpick]"); if (clear) clear.click(); });
  atelier.on("change", "#compare select[data-side]", (side) => {
    if (!runs) return;
    const wanted = [...runs];
    wanted[+side.dataset.side] = side.value;
    location.hash = `Runs/${wanted.map(encodeURIComponent).join("/")}`;
  });
})();
