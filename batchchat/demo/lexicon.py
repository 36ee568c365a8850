"""The words the demo model knows: light stemming, and which words point to which common label.

A label is known by its name (`billing`, `Feature request`, `positive`); a label that is not here is still found by
the words of its own name and of its description in the prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
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
    """Stems that point to a label, by weight: `strong` 2, `weak` 1, `phrases` (stems joined by a space) 3."""

    strong: frozenset[str]
    weak: frozenset[str]
    phrases: frozenset[str]
    runs: tuple[str, ...]


# Strong words | weak words | phrases | runs of characters, for scripts that put no space between words.
_CONCEPTS: Mapping[str, str] = {
    "billing": """
        invoice refund billing overcharged charged vat payment receipt iban sepa debit prorated reimbursement paypal
        rechnung erstattung abbuchung facture remboursement paiement prelevement factura reembolso cobro cobrado
        fattura rimborso addebito fatura reembolso cobranca factuur terugbetaling faktura счет оплата возврат فاتورة
        استرداد חשבונית זיכוי
        | bill pay paid price pricing card credit bank amount cost money euro eur usd dollar fee tax subscription
        renewal plan annual monthly discount coupon twice double purchase transaction statement accounting quote
        konto bezahlt betrag geld zahlung payer carte montant pagar tarjeta importe pagamento carta betalen betaald
        | charged twice; credit card; credit note; double charge; direct debit; payment method; purchase order; bank
        statement
        | 发票 退款 扣款 付款 請求書 返金 支払 청구 환불""",
    "bug": """
        bug crash error broken freeze exception stacktrace traceback regression glitch corrupt unresponsive timeout
        fehler absturz sturzt kaputt erreur plante bogue bug fallo errore guasto blocca erro falha travar fout
        vastgelopen ошибка сломалось вылетает خطأ تعطل שגיאה קורס
        | fail failing failure wrong stuck hang slow blank white empty missing load loading spinner screen button
        click page app browser update version console log chrome safari firefox android ios iphone reproduce step
        log api sync export import server dashboard duplicate garbled display render incorrect search report widget
        attachment upload download file csv pdf notification funktioniert seite fonctionne marche pagina funciona
        pantalla funziona werkt scherm
        | not work; doesn t work; does not work; stop work; error messag; error 500; 500 error; white screen; blank
        page; nothing happen; since the update; after the update; since the last update; internal server error; geht
        nicht; funktioniert nicht; ne fonctionne; ne marche; no funciona; non funziona; nao funciona; werkt niet
        | 错误 崩溃 闪退 エラー バグ クラッシュ 動かない 오류""",
    "feature_request": """
        feature suggestion suggest wishlist enhancement roadmap idea integrate propose proposal funktionswunsch
        vorschlag wunsche wunsch suggestion fonctionnalite souhait sugerencia funcionalidad suggerimento
        funzionalita sugestao functie suggestie предложение функция اقتراح ميزة תכונה הצעה
        | add support option ability allow enable wish love nice helpful useful consider possible possibility
        improve improvement integration customize filter sort dark mode shortcut bulk automatic automatically
        schedule webhook implement request future could slack calendar ajouter hinzufugen anadir aggiungere
        adicionar toevoegen
        | feature request; would be great; would be nice; would love; would like to see; it would help; could you
        add; can you add; please add; be able to; any plan to; dark mode; add support; wish i could; wish there; we
        need a way; i d love; it d be; would be helpful; would be useful; ware toll; ware schon; serait bien; seria
        genial; seria util; sarebbe bello; zou fijn
        | 希望 建议 功能 要望 機能 追加 기능""",
    "account": """
        password login locked username signin 2fa mfa authenticator sso verification deactivate profile otp passwort
        anmelden einloggen gesperrt zugang connexion connecter mot identifiant contrasena iniciar sesion usuario
        accedere credenziali senha entrar wachtwoord inloggen пароль войти аккаунт كلمة المرور حساب סיסמה חשבון
        להתחבר
        | account log sign access email address reset code user admin role permission seat invite invitation member
        owner delete close change transfer security hack compromised phone authentication link verify register
        registration workspace session gdpr data privacy konto compte cuenta conta
        | log in; sign in; log into; logged out; reset my password; password reset; locked out; close my account;
        delete my account; two factor; change my email; email address; reset link; verification code; my account;
        second factor; mot de passe; mein konto; mon compte; mi cuenta; mio account
        | 密码 登录 账号 账户 パスワード ログイン アカウント 비밀번호 로그인""",
    "shipping": """
        shipping shipment delivery deliver package parcel courier tracking dispatch carrier customs warehouse postal
        ups dhl fedex lieferung paket versand sendung zustellung livraison colis expedition livre envio paquete
        entrega spedizione pacco consegna encomenda levering pakket bezorging доставка посылка شحن توصيل طرد משלוח
        חבילה
        | order arrive arrival late lost item box address delay damage return exchange post mail label week street
        door neighbour neighbor pickup stock shop size replacement transit receive express bestellung angekommen
        commande recu pedido llegado ordine arrivato bestelling aangekommen заказ
        | not arrive; hasn t arrive; never arrive; where is my order; track number; wrong address; wrong item; wrong
        size; delivery date; still wait; out for delivery; in transit
        | 快递 包裹 物流 发货 配送 荷物 届 배송""",
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
        press interview partnership podcast internship vacancy applicant sponsorship compliment opening holiday
        university student thesis newsletter praise bewerbung
        | job career office visit hour media school event thank congratulation
        | thank you for; opening hour
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


@cache
def _concept(name: str) -> Words:
    strong, weak, phrases, runs = (part.strip() for part in _CONCEPTS[name].split("|"))
    strong_stems = frozenset(stem(word) for word in strong.split())
    return Words(
        strong_stems,
        frozenset(stem(word) for word in weak.split()) - strong_stems,
        frozenset(f" {' '.join(stems(phrase))} " for phrase in phrases.split(";") if phrase.strip()),
        tuple(runs.split()),
    )


def concept_words(label: str) -> Words | None:
    """Return the words that point to a label of a known name, or None."""
    name = _ALIASES.get("_".join(_WORD.findall(label.lower())))
    return _concept(name) if name is not None else None
