/* What does not fit the window: names of parts that reach out of it, and words of theirs that a line's end breaks. */
() => {
  const named = "h1, h2, h3, h4, h5, button, label, legend, summary, th, dt, [role=tab], a.btn, .badge, .what, .made, .hint";
  const width = document.documentElement.clientWidth, found = new Set();
  const scrolls = (node) => {
    for (let each = node.parentElement; each; each = each.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(each).overflowX) && each.scrollWidth > each.clientWidth) return true;
    return false;
  };
  for (const node of document.querySelectorAll(named)) {
    const box = node.getBoundingClientRect();
    if (!node.checkVisibility({visibilityProperty: true, opacityProperty: true}) || box.width < 2 || box.height < 2) continue;
    const words = node.textContent.trim().replace(/\s+/g, " ").slice(0, 60);
    if ((box.right > width + 1 || box.left < -1) && !scrolls(node)) found.add(`out of the window: ${node.tagName} "${words}"`);
    const texts = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    for (let text = texts.nextNode(); text; text = texts.nextNode()) {
      for (const word of text.data.matchAll(/\p{L}+/gu)) {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        const lines = [...range.getClientRects()].filter((each) => each.width > 0);
        if (lines.some((line) => line.top >= lines[0].bottom)) found.add(`broken: "${word[0]}" in ${node.tagName} "${words}"`);
      }
    }
  }
  return [...found];
}
