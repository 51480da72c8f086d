"use strict";
/* The tree of a model's layers below Train's settings that choose them (tabs/train/layers.py). It shows what the server has counted;
   what a person checks is sent as leaves, and comes back as the settings. */
(() => {
  const atelier = window.atelier, {h, text, show, attr, byId} = atelier;
  const open = new Set();   // nodes that are unfolded, by key
  let data = null, nodes = {}, made = "", order = "block";
  let choosing = 0, choice = 0;  // choices on their way; how many the server has taken: an answer of before the last one is not shown

  const shown = () => { const tree = byId("layer-tree"); return !!tree && tree.checkVisibility(); };
  atelier.want(() => shown() ? {layers: {choice}} : {});
  /** The form has changed: what its settings choose is asked for now. */
  atelier.askLayers = () => { if (shown()) setTimeout(atelier.tick, 30); };

  const millions = (count) => count < 1e6 ? count.toLocaleString("en") : `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} M`;
  const titled = (name, path) => name.length > 3 || path.length === 1 ? name : {q: "Query (q)", k: "Key (k)", v: "Value (v)", out: "Output"}[name] || name;

  /** {key: {title, leaves, children: [keys]}} of a tree in the chosen order; "" is its root. */
  const build = () => {
    nodes = {"": {title: "", leaves: [], children: []}};
    data.leaves.forEach(({names: [block, part, matrix]}, place) => {
      const path = (order === "block" ? [block, part, matrix] : [part, matrix, block]).filter(Boolean);
      nodes[""].leaves.push(place);
      path.forEach((name, depth) => {
        const key = path.slice(0, depth + 1).join("/"), parent = path.slice(0, depth).join("/");
        if (!nodes[key]) { nodes[key] = {title: titled(name, path), leaves: [], children: [], parent}; nodes[parent].children.push(key); }
        nodes[key].leaves.push(place);
      });
    });
  };
  const sums = (key) => {
    const all = nodes[key].leaves.map((place) => data.leaves[place]), own = all.filter((leaf) => !leaf.off), sum = (name) => own.reduce((total, leaf) => total + leaf[name], 0);
    const of = sum("of"), chosen = sum("chosen");
    return {of, chosen, trained: sum("trained"), off: !own.length, state: !of || !chosen ? "false" : chosen === of ? "true" : "mixed"};
  };

  const draw = () => {
    const tree = byId("layer-nodes"), key = JSON.stringify([order, data.leaves.map((leaf) => leaf.names)]);
    if (made !== key || !tree.childElementCount) {
      made = key;
      build();
      tree.replaceChildren(...nodes[""].children.flatMap((child) => items(child, 0)));
      if (tree.firstChild) tree.firstChild.tabIndex = 0;
    }
    for (const node of tree.querySelectorAll("[role=treeitem]")) paint(node);
  };
  /** A node and all below it, one after the other: each says its level. */
  const items = (key, level) => [
    h("li", {role: "treeitem", tabindex: "-1", "data-key": key, "aria-level": level + 1, style: `--level: ${level}`},
      h("div", {class: "layer-row"}, h("span", {class: "twist"}), h("span", {class: "layer-box"}), h("span", {class: "layer-name"}, nodes[key].title), " ", h("span", {class: "layer-of"}))),
    ...nodes[key].children.flatMap((child) => items(child, level + 1))];
  const inSight = (key) => { const {parent} = nodes[key]; return !parent || (open.has(parent) && inSight(parent)); };
  const paint = (node) => {
    const key = node.dataset.key, {of, chosen, trained, off, state} = sums(key), count = off ? "not trained" : `${trained} of ${of}`;
    attr(node, "aria-checked", state);
    attr(node, "aria-disabled", off ? "true" : null);
    attr(node, "aria-expanded", nodes[key].children.length ? String(open.has(key)) : null);
    text(node.querySelector(".layer-of"), chosen > trained ? `${count}, ${chosen} chosen` : count);
    show(node, inSight(key));
  };

  const say = () => {
    const whole = sums(""), ready = data.leaves.length > 0, numbers = (n) => data.leaves.reduce((total, leaf) => total + leaf.numbers[n], 0);
    text(byId("layer-count"), ready ? `${whole.trained} of ${whole.of} layers, with ${millions(numbers(0))} of the model's ${millions(numbers(1))} parameters` : data.problem || "Counting ...");
    text(byId("layer-problem"), data.problem);
    show(byId("layer-problem"), !!data.problem);
    const notes = [];
    if (data.leaves.some((leaf) => !leaf.off && leaf.chosen && leaf.chosen < leaf.of)) notes.push("The settings choose some parts only partly (mixed boxes without parts below). A click chooses such a part as a whole.");
    if (whole.chosen > whole.trained) notes.push("Some chosen layers get no network: the rank or learning rate of their block or layer is 0, or the network type leaves them alone.");
    if (data.leaves.some((leaf) => leaf.off)) notes.push("Parts that are not trained are switched on by Train U-Net and Train text encoder.");
    text(byId("layer-notes"), notes.join(" "));
    show(byId("layer-notes"), ready && notes.length > 0);
  };
  atelier.parts.layers = (found) => {
    if (choosing || found.choice !== choice) return;
    if (!found.fresh) setTimeout(atelier.tick, 150);
    if (!found.fresh && data && data.tree === found.tree) return;  // what was chosen last is still being counted
    data = found;
    if (!byId("layer-nodes")) return;
    draw();
    say();
  };

  /* ---- choosing ---- */

  const toggle = (node) => {
    const key = node.dataset.key, {off, state} = sums(key), on = state !== "true";
    if (off || data.problem) return;
    const leaves = nodes[key].leaves.filter((place) => !data.leaves[place].off);
    for (const place of leaves) { const leaf = data.leaves[place]; leaf.chosen = leaf.trained = on ? leaf.of : 0; }
    draw();
    choose({leaves, on});
  };
  const choose = async (what) => {
    choosing += 1;
    await atelier.act("layers", {...what, tree: data && data.tree});
    await atelier.settle();
    choosing -= 1;
    choice += 1;
    delete atelier.have.layers;  // what is shown is a guess until the server has counted
    atelier.askLayers();
  };
  const unfold = (node, on) => { if (on) open.add(node.dataset.key); else open.delete(node.dataset.key); draw(); };
  const reach = (node) => {
    for (const each of byId("layer-nodes").querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  };
  const visible = () => [...byId("layer-nodes").querySelectorAll("[role=treeitem]:not([hidden])")];

  document.addEventListener("click", (event) => {
    const row = event.target.closest && event.target.closest(".layer-row");
    if (event.target.closest && event.target.closest("#train-form button.label-wrap")) atelier.askLayers();
    if (event.target.id === "layer-usual") choose({usual: true});
    if (!row) return;
    const node = row.parentElement;
    reach(node);
    if (event.target.closest(".twist") && nodes[node.dataset.key].children.length) unfold(node, !open.has(node.dataset.key)); else toggle(node);
  });
  document.addEventListener("change", ({target}) => { if (target.name === "layer-order" && data) { order = target.value; draw(); } });
  document.addEventListener("keydown", (event) => {
    const node = event.target.closest && event.target.closest("#layer-nodes [role=treeitem]");
    if (!node || event.ctrlKey || event.altKey || event.metaKey) return;
    const {children, parent} = nodes[node.dataset.key], isOpen = open.has(node.dataset.key), all = visible(), at = all.indexOf(node);
    const to = {ArrowDown: all[at + 1], ArrowUp: all[at - 1], Home: all[0], End: all[all.length - 1]};
    if (event.key in to) { if (to[event.key]) reach(to[event.key]); }
    else if (event.key === "ArrowRight") { if (children.length && !isOpen) unfold(node, true); else if (children.length) reach(all[at + 1]); }
    else if (event.key === "ArrowLeft") { if (isOpen) unfold(node, false); else if (parent) reach(all.find((each) => each.dataset.key === parent)); }
    else if (event.key === " " || event.key === "Enter") toggle(node);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
})();
