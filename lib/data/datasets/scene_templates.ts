/**
 * How "a is left of b" and its like are said. CLDR gives names in their basic form only, so a language has a template
 * that needs no other: most name both places and what is there. Languages without one get lists of names.
 */

/** Where the first of two things is, seen from the second. */
export type Relation = 'left' | 'right' | 'above' | 'below';

/** The opposite relation: a left of b is b right of a. */
export const opposite: Record<Relation, Relation> = {
  left: 'right',
  right: 'left',
  above: 'below',
  below: 'above',
};

type Templates = Record<Relation, string>;

/** "place: a, other place: b". */
function places(
  left: string,
  right: string,
  above: string,
  below: string,
  link = ': ',
  separator = ', ',
): Templates {
  const say = (first: string, second: string): string =>
    `${first}${link}{a}${separator}${second}${link}{b}`;
  return {
    left: say(left, right),
    right: say(right, left),
    above: say(above, below),
    below: say(below, above),
  };
}

const TEMPLATES: Record<string, Templates> = {
  ar: places('على اليسار', 'على اليمين', 'في الأعلى', 'في الأسفل', ': ', '، '),
  cs: places('vlevo', 'vpravo', 'nahoře', 'dole'),
  da: places('til venstre', 'til højre', 'øverst', 'nederst'),
  de: places('links', 'rechts', 'oben', 'unten'),
  el: places('αριστερά', 'δεξιά', 'πάνω', 'κάτω'),
  en: {
    left: '{a} to the left of {b}',
    right: '{a} to the right of {b}',
    above: '{a} above {b}',
    below: '{a} below {b}',
  },
  es: places('a la izquierda', 'a la derecha', 'arriba', 'abajo'),
  fa: places('در سمت چپ', 'در سمت راست', 'بالا', 'پایین', ': ', '، '),
  fi: places('vasemmalla', 'oikealla', 'ylhäällä', 'alhaalla'),
  fr: places('à gauche', 'à droite', 'en haut', 'en bas', ' : '),
  he: places('משמאל', 'מימין', 'למעלה', 'למטה'),
  hi: places('बाईं ओर', 'दाईं ओर', 'ऊपर', 'नीचे'),
  hr: places('lijevo', 'desno', 'gore', 'dolje'),
  hu: places('bal oldalon', 'jobb oldalon', 'fent', 'lent'),
  id: places('di kiri', 'di kanan', 'di atas', 'di bawah'),
  it: places('a sinistra', 'a destra', 'in alto', 'in basso'),
  ja: places('左に', '右に', '上に', '下に', '', '、'),
  ko: places('왼쪽', '오른쪽', '위', '아래'),
  nl: places('links', 'rechts', 'bovenaan', 'onderaan'),
  no: places('til venstre', 'til høyre', 'øverst', 'nederst'),
  pl: places('po lewej', 'po prawej', 'na górze', 'na dole'),
  pt: places('à esquerda', 'à direita', 'em cima', 'embaixo'),
  ro: places('la stânga', 'la dreapta', 'sus', 'jos'),
  ru: places('слева', 'справа', 'сверху', 'снизу'),
  sv: places('till vänster', 'till höger', 'överst', 'nederst'),
  sw: places('kushoto', 'kulia', 'juu', 'chini'),
  th: places('ด้านซ้าย', 'ด้านขวา', 'ด้านบน', 'ด้านล่าง'),
  tr: places('solda', 'sağda', 'yukarıda', 'aşağıda'),
  uk: places('ліворуч', 'праворуч', 'вгорі', 'внизу'),
  vi: places('bên trái', 'bên phải', 'phía trên', 'phía dưới'),
  zh: places('左边是', '右边是', '上面是', '下面是', '', ','),
};

/** Languages that have templates. */
export const templateLanguages: readonly string[] = Object.keys(TEMPLATES);

/** "a `relation` b" in a language; undefined where it has no template. */
export function relationText(
  language: string,
  relation: Relation,
  a: string,
  b: string,
): string | undefined {
  return TEMPLATES[language]?.[relation].replace('{a}', () => a).replace('{b}', () => b);
}

/** A list of names as a caption. */
export function listText(language: string, names: readonly string[]): string {
  return names.join(
    language === 'ja'
      ? '、'
      : language === 'zh'
        ? '、'
        : language === 'ar' || language === 'fa'
          ? '، '
          : ', ',
  );
}
