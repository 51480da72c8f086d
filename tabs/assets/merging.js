"use strict";
/* The LoRAs of a merge as rows with sliders (tabs/form/task_form.py). The two fields that hold their paths and strengths are hidden
   before it and always say the same, so that presets, undo and bars of blocks need to know nothing of rows. */
(() => {
  const atelier = window.atelier, {h, byId} = atelier;
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
      const {lines, strengths} = this, cards = this.cards = JSON.parse(this.dataset.cards);
      if (given(this.ratios.value).length && given(this.ratios.value).length !== lines.length) this.weigh(strengths);
      this.replaceChildren(lines.length ? h("ul", {class: "loras lora-cards"}, lines.map((path, n) => this.row(path, n, strengths[n], cards[path])))
        : h("p", {class: "hint"}, "No LoRA yet. Choose two or more from the list."));
    }
    /** Another checkpoint of the same run instead. */
    swap(n, file) { this.put(this.files, this.lines.map((line, at) => at === n ? file : line).join("\n")); }
    /** The server's card (`TaskForm._card`) with this strength; of a file that it has not read yet the one without a name. */
    row(path, n, strength, card) {
      const made = h("template");
      made.innerHTML = card || this.cards[""];  // made by the server, names escaped
      const node = made.content.firstElementChild, inputs = [...node.querySelectorAll("input")];
      if (!card) atelier.text(node.querySelector("b"), path.split(/[\\/]/).pop());
      inputs.forEach((one, at) => {
        one.id = `${this.dataset.files}-${n}-${at}`;
        one.value = strength;
        one.dataset.twin = `${this.dataset.files}-${n}-${1 - at}`;
        one.addEventListener("change", () => this.weigh(this.strengths.map((each, place) => place === n && one.value !== "" ? one.value : each)));
      });
      node.addEventListener("click", ({target}) => {
        const step = target.closest("[data-value]");
        if (step) this.swap(n, step.dataset.value);
        else if (target.closest("[data-remove]")) this.remove(n);
      });
      return node;
    }
  }
  customElements.define("lora-rows", LoraRows);
})();
