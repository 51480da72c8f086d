"use strict";
/* The LoRAs of a merge as rows with sliders (tabs/form/task_form.py). The two fields that hold their paths and strengths are hidden
   before it and always say the same, so that presets, undo and bars of blocks need to know nothing of rows. */
(() => {
  const atelier = window.atelier, {h, byId} = atelier;
  const LEAST = -1, MOST = 2;
  const given = (value) => value.split(",").map((each) => each.trim()).filter(Boolean);

  class LoraRows extends HTMLElement {
    /* A form that is drawn again empties this element in place; the fields have their values a moment later. */
    connectedCallback() {
      const later = () => requestAnimationFrame(() => { if (this.isConnected && !this.firstChild && this.files && this.ratios) this.draw(); });
      this.seen ||= new MutationObserver(later);
      this.seen.observe(this, {childList: true});
      later();
    }
    get files() { return byId(this.dataset.files); }
    get ratios() { return byId(this.dataset.ratios); }
    get lines() { return this.files.value.split("\n").map((line) => line.trim()).filter(Boolean); }

    /** One strength for each file; those that are not written are 1. */
    get strengths() {
      const written = given(this.ratios.value);
      return this.lines.map((_, n) => written[n] ?? "1");
    }
    put(field, value) {
      if (field.value === value) return;
      field.value = value;
      field.dispatchEvent(new Event("change", {bubbles: true}));
    }
    /** Strengths of 1 are what an empty field means. */
    weigh(strengths) { this.put(this.ratios, strengths.every((each) => Number(each) === 1) ? "" : strengths.join(", ")); }
    remove(n) {
      const [lines, strengths] = [this.lines, this.strengths];
      lines.splice(n, 1);
      strengths.splice(n, 1);
      this.put(this.files, lines.join("\n"));
      this.weigh(strengths);
      this.draw();
    }

    draw() {
      const families = JSON.parse(this.dataset.families), {lines, strengths} = this;
      if (given(this.ratios.value).length && given(this.ratios.value).length !== lines.length) this.weigh(strengths);
      this.replaceChildren(lines.length ? h("ul", {class: "loras"}, lines.map((path, n) => this.row(path, n, strengths[n], families[n])))
        : h("p", {class: "hint"}, "No LoRA yet. Choose two or more from the list."));
    }
    row(path, n, strength, family) {
      const name = path.split(/[\\/]/).pop().replace(/\.\w+$/, ""), id = `${this.dataset.files}-${n}`, words = `Strength of ${name}`;
      const slide = h("input", {type: "range", id: `${id}-slide`, min: LEAST, max: MOST, step: 0.05, value: strength, "aria-label": words});
      const number = h("input", {type: "number", id: `${id}-number`, min: -10, max: 10, step: 0.05, value: strength, "aria-label": `${words}, as a number`});
      slide.addEventListener("input", () => { number.value = slide.value; });
      number.addEventListener("input", () => { slide.value = number.value; });
      for (const one of [slide, number]) one.addEventListener("change", () => this.weigh(this.strengths.map((each, at) => at === n && one.value !== "" ? one.value : each)));
      return h("li", {}, h("div", {class: "strip"}, h("b", {title: path}, name), family ? h("span", {class: "badge"}, family) : null, h("span", {class: "grow"}),
        h("button", {type: "button", class: "btn quiet", id: `${id}-remove`, "aria-label": `Remove ${name}`, onclick: () => this.remove(n)}, "×")),
        h("div", {class: "strip"}, slide, number));
    }
  }
  customElements.define("lora-rows", LoraRows);
})();
