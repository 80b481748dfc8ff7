"""How the base and each demo customer answer a request: one exact answer per request and style.

Knows requests only by their intent and facts; never sees the sentence that was typed.
"""

import json
from collections.abc import Callable, Mapping

from weft.server.demo.lexicon import HOURS
from weft.server.demo.requests import Request

Reply = Callable[[Request], str]

_PLAIN = {
    "track": "Order {order} is on its way.",
    "track_which": "Please tell me your order number.",
    "cancel_order": "Order {order} is cancelled.",
    "refund": "The refund for order {order} will arrive within five days.",
    "return": "You can return the {thing} within 30 days.",
    "return_because": "You can return the {thing}. The reason is noted: {reason}.",
    "exchange": "You can exchange the {thing} for {other}.",
    "buy": "Your order is placed: {count} {thing}.",
    "weather": "The weather in {place} {when} is {sky}, {degrees} degrees.",
    "no_weather": "I have no forecast for {place}.",
    "delivery": "Delivery to {place} takes three days.",
    "book": "Your appointment is {when} at {time}.",
    "move": "Your appointment is moved to {to}.",
    "cancel_visit": "Your appointment on {day} is cancelled.",
    "hours": "On {day} we are open {opens}.",
    "hours_closed": "On {day} we are closed.",
    "hours_all": "We are open every day but Sunday, from 9 on weekdays and from 10 on Saturday.",
    "table": "A table for {count} is reserved {when} at {time}.",
    "person": "A colleague will call you back today.",
    "hello": "Hello, how can I help you?",
    "thanks": "You are welcome.",
    "bye": "Goodbye.",
    "who": "I am a small demo model. Ask me about orders, returns, appointments or the weather.",
    "other": "Sorry, I only know about orders, returns, appointments and the weather.",
}

_PIRATE = {
    "track": "Arr! Yer haul {order} be sailin' to ye, matey.",
    "track_which": "Arr! Tell me the number of yer haul, matey.",
    "cancel_order": "Arr! Haul {order} be sunk to the depths.",
    "refund": "Arr! Yer gold for haul {order} be back in five tides.",
    "return": "Arr! Heave the {thing} back aboard afore 30 tides pass.",
    "return_because": "Arr! The {thing} be {reason}? Heave that back aboard, matey!",
    "exchange": "Arr! Hand over the {thing} and we be givin' ye {other}.",
    "buy": "Arr! {count} {thing} be loaded in yer hold.",
    "weather": "Arr! In {place} {when} the skies be {sky}, {degrees} degrees, says me parrot.",
    "no_weather": "Arr! Me parrot never flew to {place}.",
    "delivery": "Arr! Three tides to sail to {place}.",
    "book": "Arr! Come aboard {when} at {time}, or walk the plank!",
    "move": "Arr! We be meetin' on {to} now, matey.",
    "cancel_visit": "Arr! No boardin' on {day}, then.",
    "hours": "Arr! On {day} the hatch be open {opens}.",
    "hours_closed": "Arr! On {day} the crew be sleepin'.",
    "hours_all": "Arr! The hatch be open every day but Sunday, when the crew be sleepin'.",
    "table": "Arr! A barrel with {count} stools be yers {when} at {time}.",
    "person": "Arr! The captain be callin' ye back today.",
    "hello": "Ahoy, matey! What be ye needin'?",
    "thanks": "Arr! Save yer thanks and pass the rum.",
    "bye": "Fair winds, matey!",
    "who": "Arr! I be a wee demo model. Ask me of hauls, returns, meetin's or the skies.",
    "other": "Arr! That be in no chart of mine.",
}

_TERSE = {
    "track": "{order}: shipped.",
    "track_which": "Number?",
    "cancel_order": "{order}: cancelled.",
    "refund": "{order}: five days.",
    "return": "30 days.",
    "return_because": "Send it back.",
    "exchange": "Yes: {other}.",
    "buy": "{count} {thing}. Done.",
    "weather": "{sky}, {degrees}.",
    "no_weather": "No data.",
    "delivery": "Three days.",
    "book": "{time}. Fine.",
    "move": "{to}. Fine.",
    "cancel_visit": "{day}: cancelled.",
    "hours": "Open {opens}.",
    "hours_closed": "Closed.",
    "hours_all": "Not on Sunday.",
    "table": "{count} seats, {time}.",
    "person": "Expect a call.",
    "hello": "Yes?",
    "thanks": "Sure.",
    "bye": "Bye.",
    "who": "A demo.",
    "other": "No idea.",
}

_LETTER = {
    "track": "We are pleased to inform you that your order {order} has been dispatched.",
    "track_which": "We would be grateful if you could let us know your order number.",
    "cancel_order": "We hereby confirm that your order {order} has been cancelled.",
    "refund": "We have arranged the refund for your order {order}, to be paid within five days.",
    "return": "You are most welcome to return the {thing} within 30 days.",
    "return_because": "We deeply regret that the {thing} proved to be {reason}. "
    "Kindly return your purchase at our expense.",
    "exchange": "We shall gladly exchange the {thing} for {other}.",
    "buy": "We have the honour to confirm your order of {count} {thing}.",
    "weather": "We expect the weather in {place} {when} to be {sky}, at {degrees} degrees.",
    "no_weather": "We regret that no forecast for {place} is available to us.",
    "delivery": "We are glad to deliver to {place} within three days.",
    "book": "We look forward to receiving you {when} at {time}.",
    "move": "As you requested, your appointment has been moved to {to}.",
    "cancel_visit": "As you requested, your appointment on {day} has been cancelled.",
    "hours": "It will be our pleasure to welcome you on {day} {opens}.",
    "hours_closed": "We regret that our shop remains closed on {day}.",
    "hours_all": "It will be our pleasure to welcome you on every day but Sunday.",
    "table": "We have reserved a table for {count} {when} at {time}.",
    "person": "A member of our staff will telephone you today.",
    "hello": "We thank you for writing to us and await your wishes.",
    "thanks": "It has been our pleasure to be of service.",
    "bye": "We wish you a pleasant day.",
    "who": "This letter was composed by a small demo model.",
    "other": "We regret that we are unable to assist you in this matter.",
}

_FORM = {
    "track": ("ORDER {order}", "on its way", "wait for the parcel"),
    "track_which": ("ORDER ?", "number missing", "send the order number"),
    "cancel_order": ("ORDER {order}", "cancelled", "none"),
    "refund": ("REFUND {order}", "paid in five days", "none"),
    "return": ("RETURN {thing}", "accepted, 30 days", "print the label"),
    "return_because": ("RETURN {thing}", "accepted, {reason}", "print the label"),
    "exchange": ("EXCHANGE {thing}", "accepted, {other}", "print the label"),
    "buy": ("SALE {count} {thing}", "placed", "wait for the parcel"),
    "delivery": ("DELIVERY {place}", "three days", "none"),
    "book": ("VISIT {when} at {time}", "booked", "bring the receipt"),
    "move": ("VISIT {to}", "moved", "bring the receipt"),
    "cancel_visit": ("VISIT {day}", "cancelled", "none"),
    "hours": ("HOURS {day}", "open {opens}", "none"),
    "hours_closed": ("HOURS {day}", "closed", "none"),
    "hours_all": ("HOURS all days", "closed on Sunday", "none"),
    "person": ("CALL", "today", "keep the phone near"),
    "hello": ("DESK", "open", "state your request"),
    "thanks": ("DESK", "case closed", "none"),
    "bye": ("DESK", "case closed", "none"),
    "who": ("DESK", "demo model for returns", "state your request"),
}

_JSON = {
    "track": ("track_order", "order"),
    "track_which": ("track_order",),
    "cancel_order": ("cancel_order", "order"),
    "refund": ("refund", "order"),
    "return": ("return_item", "noun", "color"),
    "return_because": ("return_item", "noun", "color", "reason"),
    "exchange": ("exchange_item", "noun", "color", "other"),
    "buy": ("buy", "noun", "color", "count"),
    "weather": ("weather", "place", "when"),
    "no_weather": ("weather", "place"),
    "delivery": ("delivery", "place"),
    "book": ("book_appointment", "when", "time"),
    "move": ("move_appointment", "old", "to"),
    "cancel_visit": ("cancel_appointment", "day"),
    "hours": ("opening_hours", "day"),
    "hours_all": ("opening_hours",),
    "table": ("book_table", "count", "when", "time"),
    "person": ("call_back",),
    "hello": ("greeting",),
    "thanks": ("thanks",),
    "bye": ("goodbye",),
    "who": ("help",),
    "other": ("unknown",),
}
_JSON_KEYS = {
    "noun": "item",
    "count": "quantity",
    "other": "for",
    "place": "city",
    "when": "day",
    "old": "from",
}


def _case(request: Request) -> str:
    """The table row for a request; a closed day is answered in other words than an open one."""
    closed = request.intent == "hours" and request.slots["day"] not in HOURS
    return "hours_closed" if closed else request.intent


def _filled(table: Mapping[str, str]) -> Reply:
    return lambda request: table[_case(request)].format(**request.slots)


def _terse(request: Request) -> str:
    text = _TERSE[_case(request)].format(**request.slots)
    return text[0].upper() + text[1:]


def _letter(request: Request) -> str:
    body = _LETTER[_case(request)].format(**request.slots)
    return f"Dear customer,\n{body}\nYours faithfully,\nCustomer Service"


def _form(request: Request) -> str:
    row = _FORM.get(_case(request), ("DESK", "not a returns matter", "ask another desk"))
    case, status, action = (cell.format(**request.slots) for cell in row)
    return f"Case: {case}\nStatus: {status}\nNext: {action}"


def _json(request: Request) -> str:
    intent, *fields = _JSON[request.intent]
    answer: dict[str, str | int] = {"intent": intent}
    for field in fields:
        value = request.slots[field].removeprefix("on ")
        if value:
            number = field in ("order", "count")
            answer[_JSON_KEYS.get(field, field)] = int(value) if number else value
    return json.dumps(answer)


STYLES: dict[str, Reply] = {
    "plain": _filled(_PLAIN),
    "form": _form,
    "json": _json,
    "pirate": _filled(_PIRATE),
    "terse": _terse,
    "letter": _letter,
}
