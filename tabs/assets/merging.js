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
      const cards = JSON.parse(this.dataset.cards), {lines, strengths} = this;
      if (given(this.ratios.value).length && given(this.ratios.value).length !== lines.length) this.weigh(strengths);
      this.replaceChildren(lines.length ? h("ul", {class: "loras lora-cards"}, lines.map((path, n) => this.row(path, n, strengths[n], cards[path] || {})))
        : h("p", {class: "hint"}, "No LoRA yet. Choose two or more from the list."));
    }
    /** Another checkpoint of the same run instead. */
    swap(n, file) { this.put(this.files, this.lines.map((line, at) => at === n ? file : line).join("\n")); }
    row(path, n, strength, {name = path.split(/[\\/]/).pop().replace(/\.\w+$/, ""), family = "", words: triggers = [], image = "", step = "", steps = []}) {
      const id = `${this.dataset.files}-${n}`, named = step ? `${name}, ${step}` : name, words = `Strength of ${named}`;
      const slide = h("input", {type: "range", id: `${id}-slide`, min: LEAST, max: MOST, step: 0.05, value: strength, "aria-label": words});
      const number = h("input", {type: "number", id: `${id}-number`, min: -10, max: 10, step: 0.05, value: strength, "aria-label": `${words}, as a number`});
      slide.addEventListener("input", () => { number.value = slide.value; });
      number.addEventListener("input", () => { slide.value = number.value; });
      for (const one of [slide, number]) one.addEventListener("change", () => this.weigh(this.strengths.map((each, at) => at === n && one.value !== "" ? one.value : each)));
      const thumb = (src) => h("span", {class: "lora-thumb"}, src ? h("img", {src, alt: "", loading: "lazy"}) : null);
      const other = (each) => h("li", {}, h("button", {type: "button", class: "btn", "aria-pressed": String(each.file === path), onclick: () => this.swap(n, each.file)}, thumb(each.image), h("span", {}, each.label)));
      return h("li", {}, thumb(image), h("div", {}, h("div", {class: `strip${step ? " has-steps" : ""}`}, h("b", {title: path}, name), h("span", {class: "grow"}),
        h("button", {type: "button", class: "btn quiet", id: `${id}-remove`, "aria-label": `Remove ${named}`, onclick: () => this.remove(n)}, "×")),
        h("div", {class: "strip"}, slide, number), h("div", {class: "strip lora-words"}, triggers.map((word) => h("span", {class: "badge"}, word)), h("span", {class: "hint"}, family))),
        steps.length ? h("details", {class: "lora-steps"}, h("summary", {class: "btn quiet", "aria-label": `Other steps, now ${step}`}, step), h("ul", {}, steps.map(other))) : null);
    }
  }
  customElements.define("lora-rows", LoraRows);
})();
