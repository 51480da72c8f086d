/* Texts whose contrast is below WCAG 2.1 AA: 4.5, for large ones 3. Measured on what stands on the screen. */
() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, under) => { const a = top[3] / 255; return [0, 1, 2].map((n) => top[n] * a + under[n] * (1 - a)).concat(255); };
  const light = (color) => {
    const [r, g, b] = color.map((n) => { n /= 255; return n <= .03928 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (node) => {
    const chain = [];
    for (let at = node; at; at = at.parentElement) chain.unshift(rgba(getComputedStyle(at).backgroundColor));
    return chain.reduce((under, top) => over(top, under), [255, 255, 255, 255]);
  };
  const seen = (node) => node.checkVisibility({opacityProperty: true, visibilityProperty: true});
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, words = walker.currentNode.textContent.trim();
    if (!words || !seen(node) || node.closest("[aria-hidden=true], script, style, option, :disabled, .sr-only")) continue;
    const box = node.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const style = getComputedStyle(node), under = behind(node);
    const color = over(rgba(node.namespaceURI.includes("svg") ? style.fill : style.color), under);
    const [high, low] = [light(color), light(under)].sort((a, b) => b - a), ratio = (high + .05) / (low + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${words.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  for (const node of document.querySelectorAll("select:not(:disabled)")) {  // its words are in options, drawn on its own ground
    if (!seen(node) || node.getBoundingClientRect().width < 2) continue;
    const under = behind(node), [high, low] = [light(over(rgba(getComputedStyle(node).color), under)), light(under)].sort((a, b) => b - a);
    if ((high + .05) / (low + .05) < 4.5) found.push(`select ${node.id}: ${((high + .05) / (low + .05)).toFixed(2)}`);
  }
  return found;
}
