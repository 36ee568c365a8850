"""The words the demo model knows: light stemming, and which words point to which common label.

A label is known by its name (`billing`, `Feature request`, `positive`); a label that is not here is still found by
the words of its own name and of its description in the prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+")
_SUFFIXES = ("ingly", "ments", "ings", "ment", "edly", "ing", "ers", "ed", "es", "er", "ly", "s")
_LONGEST_WORD = 40

STOP_WORDS = frozenset(
    """
    a about after again all also am an and any are as at be because been before being but by can could did do
    does for from get got had has have he her here him his how i if in into is it its just me more my no not now
    of on one only or our out please she so some still than that the their them then there these they this those
    to too up us very was we were what when where which while who why will with would you your yours hello hi
    hey dear thanks thank regards best kind team subject body ticket message customer text
    """.split()  # noqa: SIM905 (a list of this length reads best as text)
)


class Words(NamedTuple):
    """Stems that point to a label, by weight: `strong` 2, `weak` 1, `phrases` and `runs` of characters 3.

    Phrases are stems joined by spaces (also before and after), under their first stem.
    """

    strong: frozenset[str]
    weak: frozenset[str]
    phrases: Mapping[str, tuple[str, ...]]
    runs: tuple[str, ...]


# Strong words | weak words | phrases | runs of characters, for scripts that put no space between words.
_CONCEPTS: Mapping[str, str] = {
    "billing": """
        invoice refund billing overcharged charge charged vat payment receipt iban sepa debit prorated reimbursement
        reimburse paypal voucher surcharge installment deposit rechnung erstattung abbuchung gutschein facture
        remboursement rembourse paiement prelevement factura reembolso cobro cobrado fattura rimborso addebito
        fatura cobranca factuur terugbetaling betaling faktura fakturze platnosc betalning återbetalning lasku
        | bill pay paid owe price pricing card credit bank amount cost money euro eur usd dollar fee tax
        subscription renewal plan annual monthly discount coupon balance twice double transaction statement
        accounting quote sum total reminder konto bezahlt betrag geld payer carte montant pagar tarjeta importe
        pagamento carta betalen betaald euros
        | charged twice; credit card; credit note; double charge; direct debit; payment method; purchase order; bank
        statement; gift card; money back; late fee; pay later; not add up; price adjustment; owe me
        | 发票 退款 扣款 付款 請求 返金 支払 청구 환불 invoic faktur płatno zapłac pieni
        zaplat счет счёт оплат возврат деньг рахунок
        فاتور استرداد خصم مبلغ בחשבונית חשבונית זיכוי חיוב חויב τιμολόγ χρέωσ fatura""",
    "bug": """
        bug crash error broken freeze frozen exception stacktrace traceback regression glitch corrupt unresponsive
        timeout nan 404 500 loop invalid fehler absturz sturzt kaputt erreur plante bogue fallo errore guasto blocca
        erro falha travar fout vastgelopen virhe blad chyba feil
        | fail failing failure wrong stuck hang slow blank white black empty load loading spinner screen button
        click tap swipe page app browser website site update version console log chrome safari firefox android ios
        iphone keyboard reproduce api webhook sync export dashboard duplicate garbled display render incorrect menu
        scroll skip jump appear shown cursor field form picker popup download file csv pdf notification reinstall
        reload refresh funktioniert seite fonctionne marche pagina funciona pantalla funziona werkt scherm
        | not work; doesn t work; does not work; stop work; error messag; error 500; 500 error; white screen; blank
        page; nothing happen; does nothing; since the update; after the update; since the last update; last update;
        not found; instead of; app close; logs me out; no longer; geht nicht; funktioniert nicht; ne fonctionne; ne
        marche; no funciona; non funziona; nao funciona; werkt niet; no guarda; cant tap; cannot tap; cant click;
        same thing
        | 错误 崩溃 闪退 エラー バグ クラッシュ 動かない 固ま 오류 ошибк слома вылета зависа
        помилк błąd nie działa خطأ تعطل يتوقف שגיאה
        קורס נסגר σφάλμα hata""",
    "feature_request": """
        feature suggestion suggest wishlist enhancement roadmap idea integrate propose proposal lovely
        funktionswunsch vorschlag wunsche wunsch fonctionnalite souhait souhaite sugerencia funcionalidad
        suggerimento funzionalita sugestao functie suggestie formidable ominaisuus önskemål
        | add support option ability allow enable wish love nice helpful useful consider possible possibility
        improve improvement integration customize filter sort shortcut bulk automatic automatically schedule
        scheduled implement request could offer let would vote want bigger easier better compare template reminder
        mode want show ajouter hinzufugen anadir aggiungere adicionar toevoegen
        | feature request; would be great; would be nice; would love; would like to see; it would help; could you
        add; could you offer; can you add; please add; please make; please offer; please accept; be able to; any
        plan to; dark mode; add support; wish i could; wish there; we need a way; i d love; it d be; would be
        helpful; would be useful; would be lovely; would be a great; let me; let us; let guest; could we; could the;
        can the; can u make; would you consider; i would pay; would pay; as a wish; help so much; side by side; in
        my dream; why can t i; why is there no; there should be; ware toll; ware schon; serait bien; serait
        formidable; seria genial; seria util; seria muy util; sarebbe bello; zou fijn; zou handig
        | 希望 建议 要望 追加 機能がある 기능 dodać moglibyśc mógłby ajouter предложен
        добавьте додати اقتراح إضافة ميزة הצעה
        להוסיף eklemeyi ekleyin lisätä προσθέσ""",
    "account": """
        password login locked username signin 2fa mfa authenticator sso verification deactivate profile otp
        credential unsubscribe newsletter gdpr birthday nickname passwort anmelden einloggen gesperrt zugang
        connexion connecter identifiant contrasena sesion accedere credenziali senha entrar wachtwoord inloggen
        losenord salasana
        | account log sign access email address reset code user admin role permission seat invite invitation member
        membership delete security hack hacked hacker compromised leak leaked phone authentication link verify
        register registration workspace session data privacy consent surname profile owner merge personal name plus
        konto compte cuenta conta
        | log in; sign in; log into; logged out; reset my password; password reset; reset mail; reset link; locked
        out; close my account; delete my account; delete my data; my data; two factor; change my email; change my
        name; email address; new phone; verification code; my account; second factor; api key; last name; stop the
        newsletter; phone number; mot de passe; mein konto; mon compte; mi cuenta; mio account; mitt konto
        | 密码 登录 账号 账户 パスワード ログイン アカウント 비밀번호 로그인 парол аккаунт войти увійти
        hasło zalogow logowani konta heslo كلمة
        المرور حساب סיסמה בחשבון להתחבר כתובת הדואר κωδικ λογαριασμ şifre hesab""",
    "shipping": """
        shipping shipment delivery deliver package parcel courier tracking dispatch carrier customs warehouse postal
        depot letterbox damaged scratch scratched dent missing shattered lieferung paket versand sendung zustellung
        livraison colis expedition livre envio paquete entrega spedizione pacco consegna encomenda levering pakket
        bezorging leverans toimitus
        | order arrive arrived arrival late lost box delay damage return exchange label street door neighbour
        neighbor pickup stock wrong replacement transit receive received express driver packaging packed unpack
        piece screw part broken bestellung angekommen commande recu pedido llegado ordine arrivato bestelling
        aangekommen
        | not arrive; hasn t arrive; never arrive; where is my; track number; wrong item; wrong size; wrong colour;
        delivery date; still wait; out for delivery; in transit; arrived in; arrived broken; arrived damaged; in
        piece; all there; one is missing; delivered today; send back; sent back; left it; return label; never came;
        has not come; not been delivered
        | 快递 包裹 物流 发货 配送 荷物 届 배송 доставк посылк заказ замовлен відправлен
        paczk przesyłk kurier zásilk balík شحن
        توصيل طرد משלוח חבילה παραγγελ παράδοσ kargo teslimat tilaukse""",
    "cancellation": """
        cancel cancellation terminate unsubscribe kundigen kundigung resilier resiliation cancelar disdire opzeggen
        | stop end subscription contract leave close
        | cancel my; want to leave
        | 取消 解約""",
    "complaint": """
        complaint unacceptable terrible awful disappointed disgrace outrageous beschwerde plainte queja reclamo
        | angry worst ridiculous never unhappy poor rude
        |
        |""",
    "question": """
        question wondering curious frage pregunta domanda vraag
        | how what where when explain help know clarify
        | how do; how can; is there; do you
        |""",
    "other": """
        press interview partnership podcast internship vacancy applicant apprenticeship sponsorship sponsor
        sponsoring donation donate charity compliment opening holiday university student thesis praise survey
        questionnaire recall supplier advertisement advert complaint bewerbung candidature journalist induction
        robot raffle
        | job career office visit hour media school event thank congratulation wonderful curious manual lost store
        radio museum test ignore noise staff colleague kind safe warranty conditions marketplace
        | thank you for; opening hour; please ignore; wrong shop; wrong company; another company; just wanted to
        say; do you give; looking for; dear sir; is it safe; do you sell; do you have; would like to sell
        |""",
    "positive": """
        great excellent love perfect amazing wonderful fantastic happy awesome brilliant delighted superb best toll
        super excellent parfait genial perfecto ottimo
        | good nice thank helpful easy fast friendly recommend like enjoy works smooth pleased
        | works great; thank you so much
        |""",
    "negative": """
        terrible awful bad worst hate horrible disappointed useless angry frustrating broken unacceptable poor
        annoying schlecht nul horrible malo pessimo
        | slow late never wrong problem issue fail error crash refund complaint waiting rude cancel unhappy stuck
        lost
        | not work; waste of; never again
        |""",
    "neutral": """
        okay average
        | information question how when where could would know asking
        |
        |""",
    "urgent": """
        urgent urgently asap immediately emergency critical outage blocker dringend urgence urgente
        | production down now today deadline blocked stop everyone all lost
        | right away; as soon as possible;
        |""",
    "high": """
        high critical blocked important
        | down broken crash lost cannot charged stolen hacked deadline
        | can t
        |""",
    "medium": """
        medium normal moderate
        | wrong slow late issue problem error
        |
        |""",
    "low": """
        low minor cosmetic typo suggestion
        | whenever idea nice wish question love could thank
        | no rush; not urgent
        |""",
    "spam": """
        lottery winner viagra casino crypto bitcoin prize inheritance seo backlinks
        | free click offer win earn guaranteed limited investment
        | click here; act now
        |""",
    "yes": """
        yes correct right indeed
        |
        |
        |""",
    "no": """
        no wrong incorrect
        | not never
        |
        |""",
}

_ALIASES: Mapping[str, str] = {
    alias: concept
    for concept, names in {
        "billing": "billing bill payment payments invoice invoices invoicing billing_issue refund refunds finance",
        "bug": "bug bugs defect technical technical_issue tech technical_support error incident bug_report issue",
        "feature_request": "feature features feature_request enhancement idea suggestion feature_requests",
        "account": "account accounts login access account_access authentication account_issue security",
        "shipping": "shipping delivery shipment logistics order orders shipping_issue fulfilment fulfillment",
        "cancellation": "cancellation cancel churn",
        "complaint": "complaint complaints",
        "question": "question inquiry enquiry how_to",
        "other": "other general misc miscellaneous others general_inquiry",
        "positive": "positive pos happy satisfied good",
        "negative": "negative neg unhappy angry frustrated dissatisfied bad",
        "neutral": "neutral mixed",
        "urgent": "urgent critical p0 emergency",
        "high": "high p1 important",
        "medium": "medium normal p2 moderate",
        "low": "low p3 minor",
        "spam": "spam junk",
        "yes": "yes true pass correct",
        "no": "no false fail incorrect",
    }.items()
    for alias in names.split()
}

FALLBACK_LABELS = (
    "other",
    "general",
    "misc",
    "miscellaneous",
    "unknown",
    "none",
    "neutral",
    "normal",
    "medium",
    "tie",
    "no",
)
"""The labels to answer with when nothing in the text points anywhere, best first."""


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """Reduce a lower-case word lightly, so that `charged`, `charges` and `charging` are one."""
    if not word.isascii():
        folded = unicodedata.normalize("NFKD", word)
        word = "".join(char for char in folded if not unicodedata.combining(char))
    if len(word) > 4 and word.endswith(("ies", "ied")):
        word = word[:-3] + "y"
    else:
        for suffix in _SUFFIXES:
            if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
                word = word[: -len(suffix)]
                break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word


def stems(text: str) -> list[str]:
    """Return the stems of a text's words in order, stop words included."""
    return [stem(word) for word in _WORD.findall(text.lower()) if len(word) <= _LONGEST_WORD]


def content_stems(text: str) -> set[str]:
    """Return the stems of a text's words that carry meaning."""
    return {
        stem(word) for word in _WORD.findall(text.lower()) if word not in STOP_WORDS and 1 < len(word) <= _LONGEST_WORD
    }


def _by_first(phrases: Iterable[list[str]]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for phrase in phrases:
        if phrase:
            found[phrase[0]] = (*found.get(phrase[0], ()), f" {' '.join(phrase)} ")
    return found


@cache
def _concept(name: str) -> Words:
    strong, weak, phrases, runs = (part.strip() for part in _CONCEPTS[name].split("|"))
    strong_stems = frozenset(stem(word) for word in strong.split())
    return Words(
        strong_stems,
        frozenset(stem(word) for word in weak.split()) - strong_stems,
        _by_first(stems(phrase) for phrase in phrases.split(";")),
        tuple(runs.split()),
    )


def concept_words(label: str) -> Words | None:
    """Return the words that point to a label of a known name, or None."""
    name = _ALIASES.get("_".join(_WORD.findall(label.lower())))
    return _concept(name) if name is not None else None
