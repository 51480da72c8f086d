"""A walk through the open tab by the Tab key: what is reached, whether the focus is seen, and how large each target is."""

from __future__ import annotations

from typing import Any

# Every control of the open tab that Tab should reach, and how it looks without the focus; the walk begins at the last tab's button.
BEGIN = """() => {
  const look = (node) => {
    const found = [];
    for (let each = node, up = 0; each && up < 4; each = each.parentElement, up += 1) {
      const style = getComputedStyle(each);
      found.push(style.outlineStyle === "none" ? "" : style.outline, style.boxShadow, style.borderColor);
    }
    return found.join();
  };
  const words = (node) => (node.ariaLabel || (node.labels && node.labels[0] || node).textContent).trim().slice(0, 60);
  const name = (node) => `${node.tagName.toLowerCase()} ${node.id} '${words(node)}'`;
  const open = [...document.querySelectorAll("#tabs [role=tabpanel]")].find((each) => each.checkVisibility());
  const all = [...open.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")]
    .filter((each) => !each.disabled && each.tabIndex >= 0 && each.checkVisibility({visibilityProperty: true}) && each.offsetWidth !== 0);
  const groups = new Set();  // of radio buttons: one stop each
  window.walk = {open, name, look, seen: new Set(), before: new Map(all.map((each) => [each, look(each)])),
    wanted: all.filter((each) => each.type !== "radio" || (!groups.has(each.name) && groups.add(each.name)))};
  [...document.querySelectorAll("#tabs > .tab-wrapper [role=tab]")].filter((each) => each.checkVisibility()).pop().focus();
}"""
STOP = """() => {
  const {open, name, look, before, seen} = window.walk, node = document.activeElement, faults = [];
  if (!node || !open.contains(node)) return null;
  if (seen.has(node)) faults.push("reached twice");
  for (const each of node.type === "radio" ? document.getElementsByName(node.name) : [node]) seen.add(each);
  if (before.get(node) === look(node)) faults.push("its focus is not seen");
  const style = getComputedStyle(node), own = node.getBoundingClientRect();
  const out = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth) + parseFloat(style.outlineOffset);
  const cuts = (each) => {
    const {left, right} = each.getBoundingClientRect(), rooms = [own.left - left, right - own.right];
    return getComputedStyle(each).overflowX !== "visible" && rooms.some((room) => room > -1 && room < out - .6);
  };
  for (let each = node.parentElement; each && out > 0; each = each.parentElement)
    if (cuts(each)) faults.push(`its focus is cut off by ${each.id || each.className}`);
  const boxes = [node, ...(node.labels || [])].map((each) => each.getBoundingClientRect());
  const size = (from, to) => Math.max(...boxes.map((box) => box[to])) - Math.min(...boxes.map((box) => box[from]));
  const width = size("left", "right"), height = size("top", "bottom");
  const control = node.matches("a, button, input, select, textarea, summary") && !node.closest("p");  // not links in sentences
  if (control && Math.min(width, height) < 23.9) faults.push(`is ${Math.round(width)} x ${Math.round(height)} px`);
  const covers = (top) => node.contains(top) || top.contains(node) || [...(node.labels || [])].some((each) => each.contains(top));
  const [{left, top: upper}] = boxes, middle = boxes[0].height / 2, x = left + boxes[0].width / 2;
  const tops = [Math.min(middle, 40), middle].map((down) => document.elementFromPoint(x, upper + down));
  // A message over a part of an image does not hide it.
  if (!tops[0]) faults.push("is not on the screen");
  else if (!tops.some((top) => top && covers(top))) faults.push("is under " + tops[0].outerHTML.slice(0, 80));
  return {name: name(node), faults};
}"""
# What was there at the start and is still shown: a button that the answer of the server hides meanwhile is none.
LEFT = """() => walk.wanted.filter((each) => each.isConnected && each.checkVisibility() && !each.disabled && !walk.seen.has(each))
  .map(walk.name)"""


def walk(tab: Any, most: int = 300) -> list[str]:
    """What is wrong on the way through the open tab; a trap shows as the stops behind it that were not reached."""
    tab.evaluate(BEGIN)
    faults, stops = [], 0
    while stops < most:
        tab.keyboard.press("Tab")
        stop = tab.evaluate(STOP)
        if stop is None:
            break
        stops += 1
        faults += [f"{stop['name']} {fault}" for fault in stop["faults"]]
    assert stops > 3, "the walk did not begin"
    return faults + [f"{name} is not reached" for name in tab.evaluate(LEFT)]
