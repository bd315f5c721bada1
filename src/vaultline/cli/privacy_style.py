"""The look of the leakage page: light and dark by the reader's setting, nothing from outside."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfbf9; --card: #ffffff; --ink: #1d2430; --soft: #5c6675; --line: #e3e4e0;
  --red: #c23b22; --red-ground: #fdeeea; --green: #2f7d4f; --green-ground: #eaf5ee;
  --amber: #9a6a00; --amber-ground: #fcf4e0;
  --attack: #0072b2; --channel: #b5590a; --pixels: #7a8594;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171c; --card: #1c2128; --ink: #e4e7ec; --soft: #9aa4b2; --line: #303741;
    --red: #ff8b73; --red-ground: #3a1f1a; --green: #7fd0a0; --green-ground: #17301f;
    --amber: #e8bd5a; --amber-ground: #33290f;
    --attack: #5bb5ea; --channel: #f0a35e; --pixels: #8793a3;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 48px 0 10px; letter-spacing: -0.005em; }
p { margin: 0 0 12px; max-width: 76ch; }
.soft { color: var(--soft); }
.small { font-size: 13px; margin-top: 6px; }
.lead { font-size: 18px; margin: 18px 0 26px; }
code, .mono {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: 13px;
}
code { overflow-wrap: anywhere; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
}
.strip { display: flex; flex-wrap: wrap; gap: 14px; margin: 10px 0 4px; }
figure { margin: 0; }
figcaption { font-size: 12px; color: var(--soft); line-height: 1.35; margin-top: 3px; }
a { color: var(--attack); }
.pic { display: block; border-radius: 5px; background: var(--line); }
.in { background-size: 100% 100%; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 13px; margin: 0 0 8px; }
.key { display: inline-block; width: 22px; height: 0; border-top: 3px solid; margin-right: 7px;
  vertical-align: middle; }
.patch { display: inline-block; width: 22px; height: 13px; margin-right: 7px;
  vertical-align: -2px; background: var(--red-ground); border: 1px solid var(--red); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; }
.grid { stroke: var(--line); stroke-width: 1; }
.limit { stroke: var(--red); stroke-width: 1.2; stroke-dasharray: 5 4; }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.dot { stroke: var(--card); stroke-width: 1.5; }
.band { fill: var(--red-ground); shape-rendering: crispEdges; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 16px; }
.red { background: var(--red-ground); border-color: var(--red); }
.red h3 { color: var(--red); }
.amber h3 { color: var(--amber); }
.none h3 { color: var(--green); }
h3 { font-size: 15px; margin: 0 0 6px; }
ul { margin: 6px 0 0; padding-left: 20px; }
li { margin-bottom: 5px; }
.cut {
  display: grid; grid-template-columns: minmax(220px, 1fr) auto; gap: 14px 28px;
  align-items: start; margin-bottom: 14px;
}
.cut.red { background: var(--card); border-left: 5px solid var(--red); }
.cut.amber { border-left: 5px solid var(--amber); }
.cut h3 { font-size: 17px; color: var(--ink); display: flex; flex-wrap: wrap; gap: 4px 10px;
  align-items: center; }
.chip { font-size: 12px; font-weight: 600; padding: 1px 9px; border-radius: 99px; }
.chip.bad { color: var(--red); background: var(--red-ground); }
.chip.good { color: var(--green); background: var(--green-ground); }
.chip.odd { color: var(--amber); background: var(--amber-ground); }
.score { display: grid; grid-template-columns: 104px 1fr 60px; gap: 8px; align-items: center;
  font-size: 13px; margin-top: 5px; }
.score b { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }
.bar { position: relative; height: 8px; border-radius: 4px; background: var(--line); }
.bar i { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 4px; }
.bar u { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--red); }
.trios { display: flex; flex-wrap: wrap; gap: 10px 20px; }
.trio { display: flex; gap: 4px; }
.empty { display: flex; align-items: center; justify-content: center; text-align: center;
  font-size: 11px; color: var(--soft); padding: 6px; }
table { border-collapse: collapse; font-size: 14px; }
td { padding: 3px 18px 3px 0; vertical-align: top; }
td:first-child { color: var(--soft); white-space: nowrap; }
@media (max-width: 1160px) {
  .cut { grid-template-columns: 1fr; }
  main { padding: 24px 14px 60px; }
}
@media print { .cut, .card { break-inside: avoid; } }
"""
