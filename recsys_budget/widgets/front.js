// The frontier as an SVG: points to click, hover and reach with the keyboard. Loads nothing.
const NS = "http://www.w3.org/2000/svg";
const WIDTH = 620, HEIGHT = 380, LEFT = 64, RIGHT = 18, TOP = 16, BOTTOM = 48;
const HINT = "Point at a mark for its figures; click it, or use the arrow keys, to choose it.";

function node(parent, name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text; // never innerHTML: labels come from data
  parent.append(made);
  return made;
}

function paragraph(parent, attributes) {
  const made = document.createElement("p");
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
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

// What each kind of mark means; only those on show are named.
function legend(parent, kinds) {
  const list = document.createElement("ul");
  list.className = "rb-legend";
  list.setAttribute("aria-hidden", "true"); // every point says in words what it is
  for (const [kind, words] of kinds) {
    const item = document.createElement("li");
    const svg = node(item, "svg", { viewBox: "0 0 26 14", width: 26, height: 14 });
    if (kind === "band") node(svg, "rect", { class: kind, x: 0, y: 2, width: 26, height: 10 });
    else if (kind === "best" || kind === "bound") node(svg, "line", { class: kind, x1: 0, x2: 26, y1: 7, y2: 7 });
    else node(svg, "circle", { class: kind, cx: 13, cy: 7, r: 5 });
    item.append(words);
    list.append(item);
  }
  parent.append(list);
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "rb-front";
  el.append(root);
  const figure = document.createElement("div");
  root.append(figure);
  const readout = paragraph(root, { class: "rb-readout", "aria-hidden": "true" }); // labels say the same
  const live = paragraph(root, { class: "rb-live", role: "status" });
  let circles = [], mark = null, scale = null;

  function draw() {
    const chart = model.get("chart");
    figure.replaceChildren();
    circles = [];
    mark = null;
    const there = chart.points.filter((p) => p.y !== null);
    const svg = node(figure, "svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "radiogroup",
      "aria-label": `${chart.y_label} against ${chart.x_label}. Arrow keys choose among the points.`,
    });
    if (!there.length) return;
    const banded = there.filter((p) => p.band).sort((a, b) => a.x - b.x);
    const [x0, x1] = range(chart.points.map((p) => p.x).concat(chart.bound.map((b) => b[0])));
    const [y0, y1] = range(
      there.flatMap((p) => [p.low ?? p.y, p.high ?? p.y, ...(p.band ?? [])]).concat(chart.bound.map((b) => b[1])));
    scale = {
      x: (v) => LEFT + ((v - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT),
      y: (v) => HEIGHT - BOTTOM - ((v - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM),
    };
    const axes = node(svg, "g", { "aria-hidden": "true" });
    for (const t of ticks(x0, x1)) {
      node(axes, "line", { class: "grid", x1: scale.x(t), x2: scale.x(t), y1: TOP, y2: HEIGHT - BOTTOM });
      node(axes, "text", { x: scale.x(t), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, `${t}`);
    }
    for (const t of ticks(y0, y1)) {
      node(axes, "line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(t), y2: scale.y(t) });
      node(axes, "text", { x: LEFT - 8, y: scale.y(t) + 4, "text-anchor": "end" }, `${t}`);
    }
    node(axes, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, chart.x_axis);
    node(axes, "text", {
      x: 16, y: (TOP + HEIGHT - BOTTOM) / 2, "text-anchor": "middle",
      transform: `rotate(-90 16 ${(TOP + HEIGHT - BOTTOM) / 2})`,
    }, chart.y_axis);
    const line = (corners) => corners.map(([x, y]) => `${scale.x(x)},${scale.y(y)}`).join(" ");
    if (banded.length > 1) {
      const around = banded.map((p) => [p.x, p.band[1]]).concat(banded.toReversed().map((p) => [p.x, p.band[0]]));
      node(svg, "polygon", { class: "band", points: line(around) });
    }
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
        tabindex: -1, role: "radio", "aria-label": p.text, "aria-checked": "false",
      });
      circle.addEventListener("click", () => choose(place));
      circle.addEventListener("keydown", (event) => key(event, place));
      for (const begun of ["pointerenter", "focus"]) circle.addEventListener(begun, () => tell(place));
      for (const over of ["pointerleave", "blur"]) circle.addEventListener(over, () => tell());
      circles.push(circle);
    });
    mark = node(svg, "circle", { class: "now", r: 12, visibility: "hidden" });
    legend(figure, [
      ["point", "reached"],
      ...(there.some((p) => p.dominated) ? [["dominated", "beaten by another point"]] : []),
      ...(chart.points.some((p) => p.y === null) ? [["lost", "impossible"]] : []),
      ...(banded.length > 1 ? [["band", "lowest to highest run"]] : []),
      ...(chart.bound.length ? [["bound", "certified: nothing is above"]] : []),
      ["now", "chosen"],
    ]);
    select();
    now();
  }

  // The figures of the point that is pointed at or focused; else of the choice.
  function tell(place) {
    place ??= circles.findIndex((circle) => circle.matches(":hover"));
    if (place < 0) place = circles.indexOf(root.getRootNode().activeElement);
    const chart = model.get("chart"), at = model.get("now");
    circles.forEach((circle, other) => circle.classList.toggle("told", other === place));
    if (place >= 0) readout.textContent = chart.points[place].text;
    else if (at.length === 2) {
      const [x, y] = at.map((v) => +v.toPrecision(4));
      readout.textContent = `Chosen: ${chart.x_label} ${x}, ${chart.y_label} ${y}. ${HINT}`;
    } else readout.textContent = HINT;
  }

  function order() {
    const points = model.get("chart").points;
    return [...points.keys()].sort((a, b) => points[a].x - points[b].x);
  }

  function key(event, place) {
    const along = order(), here = along.indexOf(place);
    const next = {
      ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1,
      Home: 0, End: along.length - 1, Enter: here, " ": here,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (along[next] === undefined) return;
    choose(along[next]);
    circles[along[next]].focus();
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
      circle.setAttribute("aria-checked", on ? "true" : "false");
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
    tell();
  }

  function say() {
    live.textContent = model.get("said");
  }

  draw();
  say();
  const heard = { "change:chart": draw, "change:selected": select, "change:now": now, "change:said": say };
  for (const [what, then] of Object.entries(heard)) model.on(what, then);
  model.set("loaded", true);
  model.save_changes();
  return () => { for (const [what, then] of Object.entries(heard)) model.off(what, then); };
}

export default { render };
