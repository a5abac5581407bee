"""The page's style sheet: light and dark, phone and print, without anything from elsewhere."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d8dce1;--grid:#e7eaee;--accent:#0b5cad;
--s0:#0067a8;--s1:#c04a00;--s2:#00805c;--s3:#a8478a;--s4:#8a6100;--s5:#5b4bb5;--good:#00704f;--bad:#b3261e;--warn:#8a5a00;
--r0:#a3142a;--r1:#f0a98a;--r2:#9cc8e3;--r3:#1f5fa5;
--h0:#00224e;--h1:#123570;--h2:#3b496c;--h3:#575d6d;--h4:#707173;--h5:#8a8678;--h6:#a59c74;--h7:#c3b369;--h8:#e1cc55;--h9:#fee838}
@media (prefers-color-scheme:dark){:root{--bg:#11151a;--card:#181d24;--ink:#e8ecf1;--soft:#a3adb8;--line:#343c46;--grid:#272e37;
--accent:#7cb8f5;--s0:#5fb3f0;--s1:#ff9455;--s2:#45c9a0;--s3:#e393cb;--s4:#dfb147;--s5:#ab9ff2;--good:#52d3a8;--bad:#ff8f86;
--warn:#e9b552;--r0:#c43a4b;--r1:#e8a083;--r2:#8fbfdd;--r3:#3c7fc8}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
overflow-wrap:anywhere}
.skip{position:absolute;left:-999rem;top:0;padding:.6rem 1rem;background:var(--accent);color:var(--bg);z-index:2}
.skip:focus{left:0}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:4px}
header,main,footer{max-width:76rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.6rem}
h1{font-size:clamp(1.5rem,1.2rem + 1.6vw,2.2rem);line-height:1.2;margin:0 0 .2rem}
h2{font-size:1.4rem;line-height:1.25;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;line-height:1.3;margin:0 0 .3rem}
section>h3{margin-top:1.6rem;font-size:1.2rem}
h4{font-size:1.02rem;line-height:1.3;margin:0 0 .3rem}
a{color:var(--accent)}
p{margin:.4rem 0}
.kicker{color:var(--soft);font-size:.9rem;letter-spacing:.02em;margin:0}
.soft,figcaption{color:var(--soft)}
.soft{font-size:.93rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.35rem .5rem;padding:0;margin:1rem 0 0}
nav a{display:inline-block;padding:.35rem .8rem;border:1px solid var(--line);border-radius:99px;background:var(--card);text-decoration:none;
font-size:.92rem}
nav a:hover{border-color:var(--accent)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1.2rem 0 0;padding:0}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:.7rem .9rem}
.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:0;font-size:1.35rem;font-weight:650;line-height:1.25;font-variant-numeric:tabular-nums}
.facts small{display:block;font-size:.82rem;font-weight:400;color:var(--soft);line-height:1.35;margin-top:.15rem}
.verdict{background:var(--card);border:1px solid var(--line);border-left:.35rem solid var(--accent);border-radius:.5rem;
padding:.8rem 1.1rem;margin:1rem 0}
.verdict ul{margin:.3rem 0;padding-left:1.2rem}
.verdict p:first-child{font-weight:600;font-size:1.05rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,max(21rem,40%)),1fr));gap:1rem;margin:1rem 0;align-items:start}
.grid>:only-child,.narrow{max-width:38rem}
figure,.card{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:.9rem 1rem;margin:0;min-width:0}
figure{container-type:inline-size}
figcaption{font-size:.9rem;margin-top:.35rem}
svg{display:block;width:100%;height:auto;max-height:46rem}
svg text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
svg .t{fill:var(--soft)}
svg .e{text-anchor:end}svg .m{text-anchor:middle}
svg .b{font-weight:650}
.g{stroke:var(--grid)}.ax{stroke:var(--soft)}
.l{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.l.thin{stroke-width:1;opacity:.45}
.l.ref{stroke:var(--soft);stroke-width:1.5}
.p{fill:var(--c);stroke:var(--card);stroke-width:1}
.w{stroke:var(--c);stroke-width:1.6}
.band{fill:var(--c);opacity:.14}
.f{fill:var(--c)}
.hollow{fill:var(--card);stroke:var(--c);stroke-width:2}
.mark{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:2 3}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}.sx{--c:var(--soft)}
.l.s1{stroke-dasharray:8 4}.l.s2{stroke-dasharray:3 3}.l.s3{stroke-dasharray:10 3 2 3}.l.s4{stroke-dasharray:5 2}.l.s5{stroke-dasharray:1 4}
.l.solid{stroke-dasharray:none}.l.dash{stroke-dasharray:7 4}.l.dot{stroke-dasharray:1.5 4}
.r0{fill:var(--r0)}.r1{fill:var(--r1)}.r2{fill:var(--r2)}.r3{fill:var(--r3)}
.h0{fill:var(--h0)}.h1{fill:var(--h1)}.h2{fill:var(--h2)}.h3{fill:var(--h3)}.h4{fill:var(--h4)}.h5{fill:var(--h5)}.h6{fill:var(--h6)}
.h7{fill:var(--h7)}.h8{fill:var(--h8)}.h9{fill:var(--h9)}
svg .on-dark{fill:#fff}svg .on-light{fill:#10141a}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;padding:0;margin:.4rem 0 0;font-size:.88rem}
.key li{display:flex;align-items:center;gap:.4rem}
.key svg{width:2.2rem;height:.9rem;flex:none}
.key svg.box{width:.9rem}
.wide{overflow-x:auto;margin:.5rem 0;max-height:30rem;overflow-y:auto}
table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--grid);text-align:left;vertical-align:top;overflow-wrap:normal}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
thead th{position:sticky;top:0;background:var(--card);border-bottom:1px solid var(--line)}
tbody th{font-weight:600}
details{margin:.6rem 0 0}
summary{cursor:pointer;color:var(--accent);font-size:.92rem;padding:.25rem 0;width:fit-content}
pre,.text{white-space:pre-wrap;font:.86rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:.2rem 0;overflow-wrap:anywhere;
unicode-bidi:plaintext}
pre{max-height:32rem;overflow:auto}
.sample{border-top:1px solid var(--grid);padding:.6rem 0}
.sample:first-of-type{border-top:0}
.tag{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 .55rem;font-size:.8rem;font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
.letter{display:inline-block;min-width:1.5em;text-align:center;border:2px solid var(--c);border-radius:.35em;font-weight:700;
line-height:1.4}
footer{color:var(--soft);font-size:.88rem;padding-top:2rem;padding-bottom:3rem}
@container (max-width:27rem){svg text{font-size:13px}}
@container (max-width:21.5rem){svg text{font-size:15.5px}}
@container (min-width:38rem){svg text{font-size:9px}}
@media (max-width:30rem){.facts{grid-template-columns:1fr 1fr}.facts dd{font-size:1.12rem}}
@media print{
:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--grid:#ddd;--accent:#003f80;--s0:#0067a8;--s1:#c04a00;
--s2:#00805c;--s3:#a8478a;--s4:#8a6100;--s5:#5b4bb5;--good:#00593f;--bad:#8e1d17;--warn:#6b4600;--r0:#a3142a;--r1:#f0a98a;--r2:#9cc8e3;
--r3:#1f5fa5}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:10pt}
nav,.skip,details.numbers,summary{display:none}
header,main,footer{max-width:none;padding:0}
h2{break-after:avoid;margin-top:1.4rem}h3,h4{break-after:avoid}
figure,.facts div,.sample,.verdict{break-inside:avoid}
.grid{grid-template-columns:1fr 1fr;gap:.6rem}
.grid>:only-child{grid-column:1/-1;max-width:60%}
.wide,pre{max-height:none;overflow:visible}
details::details-content{content-visibility:visible;display:block}
thead th{position:static}
a{color:inherit;text-decoration:none}
}
"""
