"use strict";
/* What a tool found, drawn under its card: tables, heat maps by block, curves, and the file that it wrote. Plots are saved as PNG. */
(() => {
  const atelier = window.atelier, {h} = atelier;
  const press = (words, act, label) => h("button", {type: "button", class: "btn small", onclick: act, "aria-label": label || null}, words);
  const head = (plot, ...more) => h("div", {class: "result-head"}, h("h4", {}, plot.title), ...more);
  const figures = (value, span) => span && span[0] < 0 ? value === null ? "" : value.toFixed(2).replace(/^-0.00$/, "0.00") : value === null ? "" : value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(0).replace("e+", "e") : String(+value.toPrecision(Math.abs(value) < 0.01 ? 2 : 3));  // as wide as a cell

  /* ---- tables ---- */
  const cell = (value, copies) => {
    if (typeof value === "number") return h("td", {class: "num figures"}, Number.isInteger(value) ? String(value) : atelier.number(value));
    if (copies && value) return h("td", {}, h("button", {type: "button", class: "link copies", title: "Copy", "aria-label": `Copy ${value}`, "data-copy": value}, value));
    return h("td", {}, value === null ? "" : String(value));
  };
  const table = (data) => h("div", {class: "result"}, head(data),
    h("div", {class: "result-scroll", tabindex: "0", role: "region", "aria-label": data.title}, h("table", {class: "result-table"},
      h("thead", {}, h("tr", {}, data.columns.map((name, n) => h("th", {scope: "col", class: data.rows.length && typeof data.rows[0][n] === "number" ? "num" : null}, name)))),
      h("tbody", {}, data.rows.map((row) => h("tr", {}, row.map((value, n) => cell(value, data.copied && n > 0))))))));

  /* ---- heat maps: a table whose cells have a color, so that every number can be read ---- */
  const share = (value, span) => Math.min(1, Math.abs(value) / (Math.max(Math.abs(span[0]), Math.abs(span[1])) || 1));
  const heat = (data) => {
    const marked = Object.entries(data.notes).map(([place, note]) => `${place.replace("|", ", ")}: ${note}`);
    const one = (row, column, value) => {
      const note = data.notes[`${row}|${column}`];
      const color = value === null ? "" : `background:color-mix(in srgb, var(${value < 0 ? "--against" : "--accent"}) ${(share(value, data.span) * 60).toFixed(0)}%, transparent)`;
      return h("td", {class: note ? "noted" : null, style: color || null, title: `${row}, ${column}: ${value === null ? "none" : value}${note ? `, ${note}` : ""}`}, figures(value, data.span) + (note ? " !" : ""));
    };
    return h("div", {class: "result"}, head(data, press("Save as PNG", () => save(heatImage(data), data.title), `Save as PNG: ${data.title}`)),
      h("div", {class: "result-scroll", tabindex: "0", role: "region", "aria-label": data.title}, h("table", {class: "heat figures"},
        h("thead", {}, h("tr", {}, h("th", {scope: "col"}, h("span", {class: "unseen"}, "Layer")), data.columns.map((name) => h("th", {scope: "col"}, name)))),
        h("tbody", {}, data.rows.map((row, n) => h("tr", {}, h("th", {scope: "row"}, row), data.columns.map((column, m) => one(row, column, data.values[n][m]))))))),
      marked.length ? h("p", {class: "hint"}, `! ${marked.slice(0, 8).join("; ")}${marked.length > 8 ? ` and ${marked.length - 8} more` : ""}`) : null);
  };

  /* ---- curves ---- */
  const KINDS = ["smooth", "second", "third"];
  const curves = (data) => {
    const holder = h("div", {class: "chart result-chart"});
    new atelier.Chart(holder, {label: data.title, log: data.log}, {steps: data.x, across: data.across, up: data.up, lines: data.lines.map((line, n) => ({...line, kind: KINDS[n % KINDS.length]}))});
    holder.firstChild.setAttribute("tabindex", "0");
    return h("div", {class: "result"}, head(data, press("Save as PNG", () => saveSvg(holder.querySelector("svg"), data), `Save as PNG: ${data.title}`)), holder,
      h("p", {class: "legend result-legend"}, data.lines.map((line, n) => h("span", {}, h("i", {class: KINDS[n % KINDS.length] || null}), line.name))));
  };

  /* ---- PNG ---- */
  const save = (canvas, title) => canvas.toBlob((blob) => atelier.download(`${title.replace(/[^\w -]+/g, "").trim()}.png`, blob));
  const colors = () => {
    const style = getComputedStyle(document.body), of = (name) => style.getPropertyValue(name).trim();
    const probe = h("span", {style: "display:none"});
    document.body.append(probe);
    const real = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
    const found = {ink: real("--body-text-color"), paper: real("--background-fill-primary"), accent: real("--accent"), against: real("--against"), font: of("font-family") || "sans-serif"};
    probe.remove();
    return found;
  };
  const sheet = (width, height, paint) => {
    const canvas = document.createElement("canvas"), pen = canvas.getContext("2d"), color = colors();
    [canvas.width, canvas.height] = [width * 2, height * 2];
    pen.scale(2, 2);
    pen.fillStyle = color.paper; pen.fillRect(0, 0, width, height);
    paint(pen, color);
    return canvas;
  };
  const heatImage = (data) => {
    const CELL = 48, ROW = 22, TOP = 58, left = 24 + 7 * Math.max(0, ...data.rows.map((row) => row.length));
    return sheet(Math.max(left + CELL * data.columns.length + 16, 16 + 9 * data.title.length), TOP + ROW * data.rows.length + 16, (pen, color) => {
      const write = (words, x, y, align = "center", font = `12px ${color.font}`) => { Object.assign(pen, {fillStyle: color.ink, textAlign: align, textBaseline: "middle", font}); pen.fillText(words, x, y); };
      write(data.title, 16, 20, "left", `600 15px ${color.font}`);
      data.columns.forEach((column, m) => write(column, left + CELL * (m + 0.5), TOP - 12));
      data.rows.forEach((row, n) => {
        write(row, left - 8, TOP + ROW * (n + 0.5), "right");
        data.columns.forEach((column, m) => {
          const value = data.values[n][m], note = data.notes[`${row}|${column}`];
          if (value === null) return;
          pen.globalAlpha = share(value, data.span) * 0.6; pen.fillStyle = value < 0 ? color.against : color.accent;
          pen.fillRect(left + CELL * m, TOP + ROW * n, CELL - 2, ROW - 2);
          pen.globalAlpha = 1;
          write(figures(value, data.span) + (note ? " !" : ""), left + CELL * (m + 0.5) - 1, TOP + ROW * (n + 0.5) - 1);
        });
      });
    });
  };
  const saveSvg = (svg, data) => {
    const copy = svg.cloneNode(true), from = svg.querySelectorAll("*");
    copy.querySelectorAll("*").forEach((node, n) => {
      const style = getComputedStyle(from[n]);
      for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family"]) node.style.setProperty(name, style.getPropertyValue(name));
    });
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number), image = new Image();
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    Object.assign(copy.style, {width: `${width}px`, height: `${height}px`});
    copy.setAttribute("width", width); copy.setAttribute("height", height);
    image.onload = () => save(sheet(width, height + 56, (pen, color) => {
      const write = (words, x, y, font, paint = color.ink) => { Object.assign(pen, {fillStyle: paint, font}); pen.fillText(words, x, y); };
      write(data.title, 16, 22, `600 15px ${color.font}`);
      pen.drawImage(image, 0, 30, width, height);
      let x = 16;
      for (const [n, line] of [...svg.querySelectorAll("path.line")].entries()) {
        const style = getComputedStyle(line);
        Object.assign(pen, {strokeStyle: style.stroke, lineWidth: 2});
        pen.setLineDash(style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(",").map(parseFloat));
        pen.beginPath(); pen.moveTo(x, height + 42); pen.lineTo(x + 22, height + 42); pen.stroke();
        write(data.lines[n].name, x + 28, height + 46, `12px ${color.font}`);
        x += 52 + pen.measureText(data.lines[n].name).width;
      }
    }), data.title);
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  };

  const DRAWN = {table, heat, curves};
  /** Everything that a finished work shows besides its lines. */
  atelier.results = (work) => [
    work.file && work.file.page ? h("iframe", {class: "result-page", src: work.file.url, title: work.file.name, sandbox: "allow-popups allow-popups-to-escape-sandbox"}) : null,
    work.file ? h("p", {class: "result-file"}, work.file.page ? h("a", {class: "btn small", href: work.file.url, target: "_blank", rel: "noopener"}, "Open in a tab") : null,
      h("a", {class: "btn small", href: work.file.url, download: work.file.name}, `Download ${work.file.name}`),
      work.file.uses && work.state === "done" ? h("button", {type: "button", class: "btn small", onclick: () => atelier.command("use_result", {work: work.id})}, "Use in Generate") : null) : null,
    ...(work.shown || []).map((each) => DRAWN[each.kind] ? DRAWN[each.kind](each) : null)];
})();
