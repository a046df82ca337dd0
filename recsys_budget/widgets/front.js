// The frontier as an SVG: points to click, hover and reach with the keyboard. Loads nothing.
const NS = "http://www.w3.org/2000/svg";
const WIDTH = 620, HEIGHT = 380, LEFT = 64, RIGHT = 18, TOP = 16, BOTTOM = 48;

function node(parent, name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text; // never innerHTML: labels come from data
  parent.append(made);
  return made;
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(+t.toPrecision(12));
  return found;
}

function range(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const pad = (high - low || Math.abs(high) || 1) * 0.07;
  return [low - pad, high + pad];
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "rb-front";
  el.append(root);
  let circles = [], mark = null, scale = null;

  function draw() {
    const chart = model.get("chart");
    root.replaceChildren();
    circles = [];
    const there = chart.points.filter((p) => p.y !== null);
    const svg = node(root, "svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group",
      "aria-label": `${chart.y_label} against ${chart.x_label}. Arrow keys move between points, Enter chooses one.`,
    });
    if (!there.length) return;
    const [x0, x1] = range(chart.points.map((p) => p.x).concat(chart.bound.map((b) => b[0])));
    const [y0, y1] = range(
      there.flatMap((p) => [p.low ?? p.y, p.high ?? p.y]).concat(chart.bound.map((b) => b[1])));
    scale = {
      x: (v) => LEFT + ((v - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT),
      y: (v) => HEIGHT - BOTTOM - ((v - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM),
    };
    for (const t of ticks(x0, x1)) {
      node(svg, "line", { class: "grid", x1: scale.x(t), x2: scale.x(t), y1: TOP, y2: HEIGHT - BOTTOM });
      node(svg, "text", { x: scale.x(t), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, `${t}`);
    }
    for (const t of ticks(y0, y1)) {
      node(svg, "line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(t), y2: scale.y(t) });
      node(svg, "text", { x: LEFT - 8, y: scale.y(t) + 4, "text-anchor": "end" }, `${t}`);
    }
    node(svg, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, chart.x_label);
    node(svg, "text", {
      x: 16, y: (TOP + HEIGHT - BOTTOM) / 2, "text-anchor": "middle",
      transform: `rotate(-90 16 ${(TOP + HEIGHT - BOTTOM) / 2})`,
    }, chart.y_label);
    const line = (corners) => corners.map(([x, y]) => `${scale.x(x)},${scale.y(y)}`).join(" ");
    if (chart.bound.length) node(svg, "polyline", { class: "bound", points: line(chart.bound) });
    const best = there.filter((p) => !p.dominated).sort((a, b) => a.x - b.x);
    node(svg, "polyline", { class: "best", points: line(best.map((p) => [p.x, p.y])) });
    chart.points.forEach((p, place) => {
      const lost = p.y === null;
      if (p.low !== null && !lost) {
        node(svg, "line", { class: "error", x1: scale.x(p.x), x2: scale.x(p.x), y1: scale.y(p.low), y2: scale.y(p.high) });
      }
      const circle = node(svg, "circle", {
        class: lost ? "lost" : p.dominated ? "dominated" : "point",
        cx: scale.x(p.x), cy: lost ? HEIGHT - BOTTOM - 8 : scale.y(p.y), r: 7,
        tabindex: -1, role: "button", "aria-label": p.text, "aria-pressed": "false",
      });
      node(circle, "title", {}, p.text);
      circle.addEventListener("click", () => choose(place));
      circle.addEventListener("keydown", (event) => key(event, place));
      circles.push(circle);
    });
    mark = node(svg, "circle", { class: "now", r: 12, visibility: "hidden" });
    select();
    now();
  }

  function order() {
    const points = model.get("chart").points;
    return [...points.keys()].sort((a, b) => points[a].x - points[b].x);
  }

  function key(event, place) {
    const move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") choose(place);
    else if (move) {
      const along = order();
      const next = along[along.indexOf(place) + move];
      if (next !== undefined) { choose(next); circles[next].focus(); }
    } else return;
    event.preventDefault();
  }

  function choose(place) {
    model.set("selected", place);
    select(); // at once, before the kernel answers
    const point = model.get("chart").points[place];
    if (point.y !== null) place_mark(point.x, point.y);
    model.save_changes();
  }

  function select() {
    const at = model.get("selected");
    circles.forEach((circle, place) => {
      const on = place === at;
      circle.setAttribute("aria-pressed", on ? "true" : "false");
      circle.setAttribute("tabindex", on || (at < 0 && place === 0) ? 0 : -1);
    });
  }

  function place_mark(x, y) {
    mark.setAttribute("cx", scale.x(x));
    mark.setAttribute("cy", scale.y(y));
    mark.setAttribute("visibility", "visible");
  }

  function now() {
    const at = model.get("now");
    if (!mark) return;
    if (at.length === 2) place_mark(at[0], at[1]);
    else mark.setAttribute("visibility", "hidden");
  }

  draw();
  model.on("change:chart", draw);
  model.on("change:selected", select);
  model.on("change:now", now);
  model.set("loaded", true);
  model.save_changes();
  return () => { model.off("change:chart", draw); model.off("change:selected", select); model.off("change:now", now); };
}

export default { render };
