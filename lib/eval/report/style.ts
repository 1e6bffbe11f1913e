/**
 * Style sheet of the report: colours as variables for light, dark and paper, then the page from top
 * to bottom, then phones and paper. It is written into the document, so it may refer to nothing
 * outside.
 */
export const STYLE = `
:root{--bg:#faf9f6;--card:#fff;--ink:#1d1c1a;--soft:#68645c;--line:#e3dfd6;--model:#2b5fd9;
--pixel:#b9770e;
--chance:#8f8a80;--right:#1a7f4b;--wrong:#b3364a;--track:#eeebe4}
@media (prefers-color-scheme:dark){:root{--bg:#131418;--card:#1b1d22;--ink:#eceae4;--soft:#a19d94;
--line:#2e3037;
--model:#86a8ff;--pixel:#e2ad55;--chance:#8d8981;--right:#58c98d;--wrong:#f0899a;--track:#262930}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Noto Sans",
"Liberation Sans",sans-serif;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main{max-width:1080px;margin:0 auto;padding:clamp(16px,4vw,48px)}
h1{font-size:clamp(1.6rem,4.5vw,2.5rem);line-height:1.15;margin:0 0 .6em;letter-spacing:-.02em;
text-wrap:balance}
h2{font-size:1.35rem;margin:0 0 .3em;letter-spacing:-.01em}
h3{font-size:1.05rem;margin:0}
p{margin:.4em 0}
small{font-size:.8rem;color:var(--soft);font-weight:400}
section,footer{margin-top:clamp(36px,6vw,64px)}
.note{color:var(--soft);font-size:.9rem;max-width:46rem}
.facts{display:flex;flex-wrap:wrap;gap:8px 28px;margin:0}
.facts dt{color:var(--soft);font-size:.8rem}
.facts dd{margin:0;font-variant-numeric:tabular-nums}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:16px;
margin-top:32px}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px;
display:flex;
flex-direction:column;break-inside:avoid}
.card .note{margin:.2em 0}
.figure{font-size:2.7rem;line-height:1.1;font-weight:650;letter-spacing:-.03em;margin:.35em 0 .3em;
color:var(--model);
font-variant-numeric:tabular-nums}
.figure small{display:block;letter-spacing:0;line-height:1.4}
.bars{margin:0 0 .3em;font-size:.88rem}
.bars>div{display:grid;grid-template-columns:8.4em 1fr;align-items:center;padding:3px 0}
.bars dd{margin:0;display:grid;grid-template-columns:1fr 3.7em;gap:6px;align-items:center;
text-align:right;
font-variant-numeric:tabular-nums}
.bar{display:block;height:8px;border-radius:4px;background:var(--track);overflow:hidden}
.bar::before{content:"";display:block;height:100%;width:max(var(--w),1px);background:var(--model);
border-radius:4px}
.pixel .bar::before{background:var(--pixel)}
.chance .bar::before{background:var(--chance)}
.verdict{font-weight:600;font-size:.95rem}
.query{border-top:1px solid var(--line);padding:16px 0;break-inside:avoid}
.query:first-of-type{margin-top:14px}
.query h3{display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 12px;margin-bottom:10px}
.query bdi{font-size:1.5rem;font-weight:600;line-height:1.4}
.query ol{list-style:none;margin:0;padding:0;display:grid;
grid-template-columns:repeat(8,minmax(0,1fr));gap:10px}
.query li{position:relative;min-width:0}
.query img{display:block;width:100%;height:auto;aspect-ratio:1;object-fit:cover;border-radius:9px;
background:var(--track);
outline:3px solid var(--wrong);outline-offset:-3px}
.right img{outline-color:var(--right)}
.mark{position:absolute;top:-6px;right:-6px;width:22px;height:22px;border-radius:50%;
background:var(--wrong);
color:var(--bg);font-size:14px;line-height:22px;text-align:center;font-weight:700;
border:2px solid var(--bg);
box-sizing:content-box}
.right .mark{background:var(--right)}
.label{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden;
font-size:.74rem;
line-height:1.3;color:var(--soft);margin-top:5px;padding-bottom:1px;overflow-wrap:anywhere}
.tabs{margin-top:12px}
.tabs label{display:inline-block;padding:7px 14px;margin:0 6px 8px 0;border:1px solid var(--line);
border-radius:99px;
font-size:.9rem;cursor:pointer;background:var(--card)}
.hidden{position:absolute;opacity:0;pointer-events:none}
.hidden:checked+label{background:var(--ink);color:var(--bg);border-color:var(--ink)}
.hidden:focus-visible+label{outline:3px solid var(--model);outline-offset:2px}
.panel{display:none}
.paper{display:none}
table{width:100%;border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;
table-layout:fixed}
thead th{text-align:left;vertical-align:bottom;padding:8px 12px 8px 0;
border-bottom:2px solid var(--ink);line-height:1.25}
thead th:first-child,tbody th,tfoot th{width:27%}
thead small{display:block}
tbody th,tfoot th{text-align:left;font-weight:500;padding:6px 12px 6px 0;overflow-wrap:anywhere}
td{padding:6px 12px 6px 0;vertical-align:middle}
td span{display:block;font-size:.88em}
td .bar{height:5px}
tbody tr+tr>*{border-top:1px solid var(--line)}
tfoot tr:first-child>*{border-top:2px solid var(--ink)}
tr{break-inside:avoid}
.plot{margin:14px 0 0}
.plot figcaption{font-size:.9rem;font-weight:600;margin-bottom:10px}
.box{position:relative;margin-left:58px}
.tall .box{height:clamp(200px,34vw,320px)}
.low .box{height:74px}
.box svg{width:100%;height:100%;overflow:visible;display:block}
.box path,.box polyline{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--line);stroke-width:1}
.raw{stroke:var(--model);stroke-width:1;opacity:.35}
.line{stroke:var(--model);stroke-width:2.2;stroke-linejoin:round}
.rate{stroke:var(--pixel)}
.ys span{position:absolute;right:100%;padding-right:10px;transform:translateY(-50%);
font-size:.78rem;color:var(--soft);
white-space:nowrap;font-variant-numeric:tabular-nums}
.xs{position:relative;height:1.5em;margin:8px 0 0 58px}
.xs span{position:absolute;transform:translateX(-50%);font-size:.78rem;color:var(--soft);
font-variant-numeric:tabular-nums}
.axis{margin:0 0 0 58px;text-align:center;font-size:.78rem;color:var(--soft)}
.prose p{max-width:46rem}
a{color:var(--model)}
code{font:.88em ui-monospace,"DejaVu Sans Mono",monospace;background:var(--track);
padding:.15em .4em;border-radius:5px;
overflow-wrap:anywhere}
footer{border-top:1px solid var(--line);padding-top:20px;font-size:.88rem;color:var(--soft)}
footer h2{font-size:1rem;color:var(--ink)}
footer ul{padding-left:1.2em;margin:.4em 0;columns:2 22rem}
@media (max-width:640px){
.query ol{grid-template-columns:repeat(4,minmax(0,1fr));gap:12px 9px}
table{font-size:.8rem}
thead th,tbody th,tfoot th,td{padding-right:7px}
thead small{display:none}
thead th:first-child,tbody th,tfoot th{width:29%}
tbody th small{display:block}
.box,.xs,.axis{margin-left:44px}
}
@media print{
:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--model:#1f4fc4;--pixel:#a5690a;
--chance:#888;
--right:#11653a;--wrong:#9c2336;--track:#eee}
body{font-size:10pt}
main{max-width:none;padding:0 8px 0 0}
.cards{grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:8px}
.card{padding:10px}
section,footer{margin-top:20pt}
.panel,.paper{display:block}
.panel+.panel{margin-top:14pt}
.tabs label{display:none}
.query ol{grid-template-columns:repeat(8,minmax(0,1fr))}
.query{padding:8pt 0}
td,tbody th,tfoot th{padding-top:2pt;padding-bottom:2pt}
h2{break-after:avoid}
}
`;
