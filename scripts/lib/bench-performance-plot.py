#!/usr/bin/env python3
"""Draws docs/results/performance.svg from the results of `scripts/bench table` and `path`:
bars of lookups per second and of nanoseconds per packet, holdfast beside peers and limit.
Every bar is a median of the results, its line from p10 to p90."""

import json
import sys
from html import escape

WIDTH, LABELS, BAR, GAP = 760, 250, 16, 6
COLOURS = {"ours": "#2b6cb0", "peer": "#a0aec0", "limit": "#48bb78"}
TABLE = [
    ("limit", "limit: random lines", "limit"),
    ("ours", "holdfast", "ours"),
    ("rte_hash", "rte_hash, bulk 32", "peer"),
    ("hashbrown", "hashbrown", "peer"),
    ("dashmap", "dashmap", "peer"),
]
PATH = [
    ("macswap_ring", "macswap, net_ring", "limit"),
    ("macswap_null", "macswap, net_null", "limit"),
    ("local_hit", "holdfast: local session", "ours"),
    ("redirect_ipip", "holdfast: redirect, IP in IP", "ours"),
    ("redirect_gue", "holdfast: redirect, GUE", "ours"),
    ("rte_hash_ipip", "with rte_hash, IP in IP", "peer"),
    ("rte_hash_gue", "with rte_hash, GUE", "peer"),
]


def read(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return json.loads(text) if text.strip() else {}


def charts(table, path):
    """(title, unit, [(label, kind, spread)]) of each chart there are figures for."""
    for size, of_size in table.items():
        if not (size.endswith("M") and size[:-1].isdigit()):
            continue
        for family in ("ipv4", "ipv6"):
            hits = of_size.get(family, {}).get("hit", {})
            bars = [(label, kind, hits[key]) for key, label, kind in TABLE if key in hits]
            yield f"Lookups that hit, {size} sessions, {family}", "M/s", bars
    sizes = sorted({key.rsplit("_", 1)[1] for key in path if key.startswith("redirect_gue_")})
    for size in sizes:
        for suffix, family in (("", "ipv4"), ("_ipv6", "ipv6")):
            bars = []
            for key, label, kind in PATH:
                figures = path.get(f"{key}{suffix}_{size}")
                if figures:
                    bars.append((label, kind, figures["ns"]))
            yield f"A packet's way, {size} sessions, {family}", "ns", bars


def draw(chart, top):
    """The SVG of a chart from `top` down, and where it ends."""
    title, unit, bars = chart
    scale = (WIDTH - LABELS - 90) / max(spread["p90"] for _, _, spread in bars)
    lines = [f'<text x="10" y="{top + 14}" font-weight="bold">{escape(title)}, {unit}</text>']
    y = top + 24
    for label, kind, spread in bars:
        middle = y + BAR / 2
        width, low, high = (spread[key] * scale for key in ("median", "p10", "p90"))
        lines += [
            f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[kind]}"/>',
            f'<path d="M{LABELS + low:.1f} {middle}H{LABELS + high:.1f}" stroke="#1a202c"/>',
            f'<text x="{LABELS + max(width, high) + 6:.1f}" y="{y + 12}">{spread["median"]:g}</text>',
        ]
        y += BAR + GAP
    return lines, y + 16


def main():
    body, top = [], 10
    for chart in charts(read(sys.argv[1]), read(sys.argv[2])):
        if chart[2]:
            lines, top = draw(chart, top)
            body += lines
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" '
          f'viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="12">')
    print(f'<rect width="{WIDTH}" height="{top}" fill="white"/>')
    print("\n".join(body))
    print("</svg>")


if __name__ == "__main__":
    main()
