"use strict";
/* The card next to the form: what a training takes of the device, the memory and speed slider, and how a try went. */
(() => {
  const atelier = window.atelier, {h, text, show, attr, byId} = atelier;
  let data = null, held = false;

  const words = (place) => {
    const saved = data.fresh && data.saved ? data.saved[place.number] : undefined;
    return place.description + (saved > 0 ? ` ${atelier.memory(saved)} less than default.` : saved < 0 ? ` ${atelier.memory(-saved)} more than default.` : "");
  };
  const paintSlider = () => {
    const slider = byId("forecast-slider"), last = data.levels.length - 1;
    const at = data.levels.findIndex((place) => place.number === data.level);
    attr(slider, "max", last);
    if (!held) slider.value = at >= 0 ? at : Math.min(1, last);
    const place = data.levels[held || at >= 0 ? Number(slider.value) : -1];
    text(byId("forecast-level"), place ? place.title : "custom");
    text(byId("forecast-words"), place ? words(place) : "Move the slider to set the whole group at once.");
    attr(slider, "aria-valuetext", place ? place.title : "custom");
  };

  atelier.parts.forecast = (facts) => {
    data = facts;
    if (!byId("forecast")) return;
    paintSlider();
    const bar = byId("forecast-bar"), known = !!facts.parts;
    show(bar, known);
    show(byId("forecast-legend"), known);
    if (known) {
      const whole = Math.max(facts.device, facts.total), over = facts.total > facts.device;
      bar.replaceChildren(...facts.parts.map((part, n) => h("i", {class: `part-${n % 6}`, style: `width:${(part.bytes / whole * 100).toFixed(2)}%`, title: `${part.name}: ${atelier.memory(part.bytes)}`})),
        over ? h("b", {style: `left:${(facts.device / whole * 100).toFixed(2)}%`, title: "available memory"}) : "");
      bar.classList.toggle("stale", !facts.fresh);
      attr(bar, "aria-label", facts.parts.map((part) => `${part.name} ${atelier.memory(part.bytes)}`).join(", "));
      byId("forecast-legend").replaceChildren(...facts.parts.flatMap((part, n) => [h("span", {class: "figures"}, h("i", {class: `part-${n % 6}`}), `${part.name} ${atelier.memory(part.bytes)}`), " "]));
      const total = byId("forecast-total");
      const words = `About ${atelier.memory(facts.total)} of ${atelier.memory(facts.device)}${over ? ": does not fit" : ""}${facts.disk ? `; up to ${facts.disk} on the disk` : ""}`, late = facts.busy ? "yes" : "no";
      if (total.dataset.words !== words || total.dataset.late !== late) {
        Object.assign(total.dataset, {words, late});
        total.replaceChildren(words, facts.busy ? h("span", {class: "late hint"}, " updating") : "");
      }
      total.classList.toggle("bad", over);
    } else { text(byId("forecast-total"), facts.problem || (facts.busy ? "Estimating ..." : "")); byId("forecast-total").dataset.words = ""; }
    byId("forecast-advice").replaceChildren(...(facts.advice || []).map((line) => h("li", {}, line[0].toUpperCase() + line.slice(1))));
    show(byId("forecast-ask"), !facts.wanted);
    const tried = facts.tried || {}, going = ["waiting", "running"].includes(tried.state);
    byId("forecast-try").disabled = going;
    text(byId("forecast-tried"), !tried.state ? "" : tried.state === "done" ? `Tried${tried.old ? " with earlier settings" : ""}: ${tried.message}.` : going ? `Trying: ${tried.message || tried.state}` : `The test ended: ${tried.state}. ${tried.message}`);
  };

  document.addEventListener("input", (event) => { if (event.target.id === "forecast-slider" && data) { held = true; paintSlider(); } });
  /* Browsers tell no change where the slider ends as it began. Where they do, the change comes before the timer. */
  for (const kind of ["pointerup", "pointercancel", "keyup", "blur"])
    addEventListener(kind, () => { if (held) setTimeout(() => { held = false; paintSlider(); }); }, true);
  document.addEventListener("change", (event) => {
    if (event.target.id !== "forecast-slider" || !data) return;
    held = false;
    const place = data.levels[Number(event.target.value)];
    if (place && place.number !== data.level) { data.level = place.number; atelier.act("level", {level: place.number}); }
  });
  document.addEventListener("click", (event) => {
    if (event.target.id === "forecast-ask") { text(byId("forecast-total"), "Estimating ..."); show(event.target, false); atelier.command("forecast", {ask: atelier.ask()}); }
    if (event.target.id === "forecast-try") { atelier.once(event.target, () => data && atelier.parts.forecast(data)); text(byId("forecast-tried"), "Adding to the queue ..."); atelier.command("try", {ask: atelier.ask()}); }
  });
})();
