"use strict";
// What the page does besides being read: values under the cursor, the confusion matrix, sorting, searching.
// Names come from files that anybody may have named: they only ever become text nodes.
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const read = (element) => JSON.parse(element.textContent);
  const make = (tag, text = "", parent = null) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

  // ---- curves: the nearest point of each line
  for (const figure of document.querySelectorAll(".chart")) {
    const data = read(figure.querySelector("script"));
    const plot = figure.querySelector(".plot");
    const cursor = figure.querySelector(".cursor");
    const words = figure.querySelector(".reading");
    const steps = [...new Set(data.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    let at = steps.length - 1;
    const nearest = (sorted, x) => {
      let low = 0, high = sorted.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (sorted[middle] <= x) low = middle; else high = middle;
      }
      return Math.abs(sorted[low] - x) <= Math.abs(sorted[high] - x) ? low : high;
    };
    const value = (y) => (y === null ? "–" : data.share ? percent(y, 2) : String(Number(y.toPrecision(4))));
    const show = (place) => {
      at = clamp(place, 0, steps.length - 1);
      const x = steps[at];
      cursor.hidden = false;
      cursor.style.left = `${(100 * x) / data.last}%`;
      const epoch = data.ends.filter((end) => end < x).length + 1;
      const values = data.lines.map((line) => {
        const i = nearest(line.x, x);
        const far = Math.abs(line.x[i] - x) > data.last / 50;
        return `${line.name} ${value(line.y[i])}${far ? ` (step ${Math.round(line.x[i])})` : ""}`;
      });
      words.textContent = `step ${Math.round(x).toLocaleString("en")}, epoch ${epoch}: ${values.join(", ")}`;
    };
    const hide = () => { cursor.hidden = true; words.textContent = ""; };
    const point = (event) => {
      const box = plot.getBoundingClientRect();
      show(nearest(steps, ((event.clientX - box.left) / box.width) * data.last));
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", hide);
    figure.addEventListener("blur", hide);
    figure.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      show(cursor.hidden && Math.abs(by) === 1 ? at : at + by);
    });
  }

  const source = document.getElementById("data");
  if (!source) return;
  const { classes, cells, support, wrong, unlisted } = read(source);

  // ---- the table of classes
  const table = document.getElementById("class-table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const order = new Intl.Collator(undefined, { numeric: true });
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => {
        const text = row.cells[column].textContent;
        const number = parseFloat(text.replace(/,/g, ""));
        return [column ? (Number.isNaN(number) ? (down ? -1 : 1e9) : number) : text, row]; // "–" is last either way
      });
      const compare = column ? (a, b) => a[0] - b[0] : (a, b) => order.compare(a[0], b[0]);
      keyed.sort((a, b) => (down ? -compare(a, b) : compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
    });
  });
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    let hits = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      hits += !row.hidden;
    }
    found.textContent = wanted ? count(hits, "class", "classes") : "";
  });

  // ---- the confusion matrix
  const canvas = document.getElementById("matrix");
  const pen = canvas.getContext("2d");
  const tip = document.querySelector(".tip");
  const words = document.getElementById("cell-words");
  const list = document.getElementById("cell");
  const n = classes.length;
  const triples = [];
  const counts = new Map();
  for (let i = 0; i < cells.length; i += 3) {
    triples.push([cells[i], cells[i + 1], cells[i + 2]]);
    counts.set(cells[i] * n + cells[i + 1], cells[i + 2]);
  }
  const share = (row, total) => (support[row] ? total / support[row] : 0);
  triples.sort((a, b) => share(a[0], a[2]) - share(b[0], b[2])); // the strong ones are drawn over the weak ones
  const most = Math.max(1, n / 4); // at the largest zoom four classes are in sight
  const view = { zoom: 1, x: 0, y: 0 }; // x, y: the class at the upper left corner
  let chosen = null; // [true, predicted]
  let hovered = null;
  let size = 0, left = 0, top = 0, side = 0; // of the canvas and of the plot in it, CSS pixels

  const colors = () => {
    const style = getComputedStyle(root);
    const rgb = (name) => {
      const hex = style.getPropertyValue(name).trim();
      return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    };
    return { paper: rgb("--card"), right: rgb("--blue"), wrong: rgb("--orange"), ink: style.getPropertyValue("--ink"),
      quiet: style.getPropertyValue("--quiet"), rule: style.getPropertyValue("--rule"), font: getComputedStyle(document.body).fontFamily };
  };
  let tone = colors();
  const mixed = (color, part) => tone.paper.map((base, i) => Math.round(base + (color[i] - base) * part));

  const cellSize = () => (side * view.zoom) / n;
  const keepInside = () => {
    view.zoom = clamp(view.zoom, 1, most);
    const space = n - n / view.zoom;
    view.x = clamp(view.x, 0, space);
    view.y = clamp(view.y, 0, space);
    canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y"; // a whole matrix lets the page scroll
    Object.assign(canvas.dataset, { zoom: view.zoom.toFixed(3), x: view.x.toFixed(2), y: view.y.toFixed(2) });
  };
  let waiting = false;
  const redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };

  const fit = (text, space) => {
    if (pen.measureText(text).width <= space) return text;
    let end = text.length;
    while (end > 1 && pen.measureText(`${text.slice(0, end)}…`).width > space) end -= 1;
    return `${text.slice(0, end)}…`;
  };
  const measure = () => {
    const ratio = window.devicePixelRatio || 1;
    size = canvas.clientWidth;
    pen.font = `12px ${tone.font}`;
    let widest = 0; // a sample of 1,000 names is enough
    for (let i = 0; i < n; i += Math.ceil(n / 200)) widest = Math.max(widest, pen.measureText(classes[i]).width);
    left = Math.round(clamp(widest + 26, 40, size * 0.3));
    top = Math.round(clamp(widest + 26, 40, size * 0.22));
    side = size - left - 1;
    Object.assign(canvas.dataset, { left, top, side });
    canvas.style.height = `${top + side + 1}px`;
    canvas.width = Math.round(size * ratio);
    canvas.height = Math.round((top + side + 1) * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  };
  const draw = () => {
    const cell = cellSize();
    const high = top + side + 1;
    pen.clearRect(0, 0, size, high);
    pen.fillStyle = `rgb(${tone.paper})`;
    pen.fillRect(left, top, side, side);
    pen.save();
    pen.beginPath();
    pen.rect(left, top, side, side);
    pen.clip();
    const gap = cell > 6 ? 1 : 0;
    const wide = Math.max(cell - gap, 1.5); // a lone mistake among 1,000 classes must not vanish
    for (const [row, column, total] of triples) {
      const x = left + (column - view.x) * cell, y = top + (row - view.y) * cell;
      if (x + cell < left || y + cell < top || x > size || y > high) continue;
      const part = 0.12 + 0.88 * Math.sqrt(share(row, total));
      pen.fillStyle = `rgb(${mixed(row === column ? tone.right : tone.wrong, part)})`;
      pen.fillRect(x, y, wide, wide);
      if (cell >= 22) {
        const [r, g, b] = mixed(row === column ? tone.right : tone.wrong, part);
        pen.fillStyle = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
        pen.font = `${clamp(cell / 3, 10, 14)}px ${tone.font}`;
        pen.textAlign = "center";
        pen.textBaseline = "middle";
        pen.fillText(fit(String(total), cell - 2), x + cell / 2, y + cell / 2);
      }
    }
    for (const [mark, width] of [[hovered, 1], [chosen, 2]]) {
      if (!mark) continue;
      pen.strokeStyle = tone.ink;
      pen.lineWidth = width;
      const space = Math.max(cell - gap, 4);
      pen.strokeRect(left + (mark[1] - view.x) * cell, top + (mark[0] - view.y) * cell, space, space);
    }
    pen.restore();
    labels(cell, high);
  };
  const labels = (cell, high) => {
    pen.font = `12px ${tone.font}`;
    pen.fillStyle = tone.ink;
    const every = Math.max(1, Math.ceil(14 / cell));
    pen.textBaseline = "middle";
    for (let i = Math.ceil(view.y / every) * every; i < Math.min(n, view.y + n / view.zoom); i += every) {
      const y = top + (i + (every > 1 ? 0 : 0.5) - view.y) * cell;
      if (y < top || y > high) continue;
      pen.textAlign = "right";
      pen.fillText(fit(classes[i], left - 24), left - 6, y);
    }
    for (let i = Math.ceil(view.x / every) * every; i < Math.min(n, view.x + n / view.zoom); i += every) {
      const x = left + (i + (every > 1 ? 0 : 0.5) - view.x) * cell;
      if (x < left || x > size) continue;
      pen.save();
      pen.translate(x, top - 6);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(fit(classes[i], top - 24), 0, 0);
      pen.restore();
    }
    pen.fillStyle = tone.quiet;
    pen.textAlign = "center";
    pen.fillText("predicted", left + side / 2, 7);
    pen.save();
    pen.translate(7, top + side / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText("true", 0, 0);
    pen.restore();
  };

  const zoomAt = (x, y, factor) => { // the class under (x, y), CSS pixels in the plot, stays there
    const before = side * view.zoom / n;
    const column = view.x + x / before, row = view.y + y / before;
    view.zoom = clamp(view.zoom * factor, 1, most);
    view.x = column - x / cellSize();
    view.y = row - y / cellSize();
    keepInside();
    redraw();
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left - left, event.clientY - box.top - top];
  };
  const cellAt = ([x, y]) => {
    if (x < 0 || y < 0 || x >= side || y >= side) return null;
    return [clamp(Math.floor(view.y + y / cellSize()), 0, n - 1), clamp(Math.floor(view.x + x / cellSize()), 0, n - 1)];
  };
  const inWords = ([row, column]) => {
    const total = counts.get(row * n + column) || 0;
    const of = `${count(total, "image", "images")}, ${percent(share(row, total))} of ${support[row].toLocaleString("en")}`;
    return row === column ? [`${classes[row]}, recognised`, of] : [`${classes[row]} taken for ${classes[column]}`, of];
  };
  const hover = (mark, at) => {
    hovered = mark;
    tip.hidden = !mark;
    if (mark) {
      const [what, how] = inWords(mark);
      tip.replaceChildren(make("b", what), make("br"), make("span", how));
      const x = left + at[0], y = top + at[1];
      tip.style.left = `${clamp(x + 14, 0, Math.max(0, size - tip.offsetWidth))}px`;
      tip.style.top = `${y + 18}px`;
    }
    redraw();
  };
  const choose = (mark) => {
    chosen = mark;
    words.textContent = mark ? inWords(mark).join(": ") : "";
    canvas.dataset.cell = mark ? mark.join(",") : "";
    for (const row of body.rows) row.classList.toggle("chosen", !!mark && Number(row.dataset.class) === mark[0]);
    redraw();
  };
  const listImages = (mark) => { // of a cell
    list.hidden = false;
    list.replaceChildren();
    const [row, column] = mark;
    make("h3", inWords(mark).join(": "), list);
    if (row === column) { make("p", "Images that are right are not listed.", list); return; }
    const items = make("ul", "", list);
    wrong.forEach(([own, guess, sure, left_over, id], index) => {
      if (own !== row || guess !== column || items.childElementCount >= 200) return;
      const item = make("li", "", items);
      const photo = document.querySelector(`#wrong-${index} .photo`);
      if (photo) { const copy = make("img", "", item); copy.src = photo.src; copy.alt = ""; }
      make("bdi", id, item);
      make("div", `${percent(sure / 1000)}, true class ${percent(left_over / 1000)}`, item);
    });
    const missing = (counts.get(row * n + column) || 0) - items.childElementCount;
    if (missing > 0) make("p", `${count(missing, "more image", "more images")}${unlisted ? "; only the most confident mistakes are listed" : ""}`, list);
  };

  // mouse, pen and fingers
  const fingers = new Map();
  let start = null;
  canvas.addEventListener("wheel", (event) => {
    if (event.deltaY > 0 && view.zoom === 1) return; // nothing to zoom out of: the page scrolls on
    event.preventDefault();
    zoomAt(...place(event), Math.exp(-clamp(event.deltaY, -200, 200) / 300));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    start = fingers.size === 1 ? { at: place(event), moved: false } : null;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = place(event), before = fingers.get(event.pointerId);
    if (!before) { hover(cellAt(now), now); return; }
    fingers.set(event.pointerId, now);
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const apart = (a) => Math.max(8, Math.hypot(a[0] - other[0], a[1] - other[1]));
      zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, apart(now) / apart(before));
      return;
    }
    if (start && Math.hypot(now[0] - start.at[0], now[1] - start.at[1]) > 5) start.moved = true;
    if (!start || !start.moved || view.zoom === 1) return;
    view.x -= (now[0] - before[0]) / cellSize();
    view.y -= (now[1] - before[1]) / cellSize();
    keepInside();
    hover(null);
  });
  const lift = (event) => {
    const at = fingers.get(event.pointerId);
    fingers.delete(event.pointerId);
    if (event.type === "pointerup" && at && start && !start.moved) {
      const mark = cellAt(at);
      if (mark) { choose(mark); listImages(mark); }
    }
    start = null;
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (by) {
      const next = chosen ? [clamp(chosen[0] + by[0], 0, n - 1), clamp(chosen[1] + by[1], 0, n - 1)] : [0, 0];
      const seen = n / view.zoom;
      view.y = clamp(view.y, next[0] + 1 - seen, next[0]);
      view.x = clamp(view.x, next[1] + 1 - seen, next[1]);
      keepInside();
      choose(next);
    } else if (event.key === "Enter" && chosen) listImages(chosen);
    else if (event.key === "+" || event.key === "=") zoomAt(side / 2, side / 2, 1.5);
    else if (event.key === "-") zoomAt(side / 2, side / 2, 1 / 1.5);
    else if (event.key === "0") zoomAt(0, 0, 0);
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    if (button === canvas) continue;
    button.addEventListener("click", () => zoomAt(side / 2, side / 2, { in: 1.6, out: 1 / 1.6, whole: 0 }[button.dataset.zoom]));
  }
  const renew = () => { tone = colors(); measure(); keepInside(); redraw(); };
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renew);
  new ResizeObserver(() => { if (canvas.clientWidth !== size) renew(); }).observe(canvas);
  renew();
  root.dataset.ready = "yes";
})();
