"""Countries by their ISO 3166 letters, and the groups of them that law knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from freehold.errors import BadRequest

# The members since 1 February 2020, when the United Kingdom had left, as of November 2026; and what belongs to them
# under letters of its own: Åland, and the outermost regions of France (TFEU, articles 349 and 355).
_EU = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK AX GF GP MF MQ RE YT"
GROUPS = {
    "EU": frozenset(_EU.split()),
    "EEA": frozenset(f"{_EU} EU IS LI NO".split()),
    "US": frozenset(("AS", "GU", "MP", "PR", "UM", "VI")),  # its territories: its law is theirs
}
_ALIASES = {"UK": "GB", "USA": "US", "EL": "GR", "great britain": "GB", "england": "GB", "the netherlands": "NL"}

_NAMES = """AD Andorra, AE United Arab Emirates, AF Afghanistan, AG Antigua and Barbuda, AI Anguilla, AL Albania,
AM Armenia, AO Angola, AQ Antarctica, AR Argentina, AS American Samoa, AT Austria, AU Australia, AW Aruba,
AX Åland Islands, AZ Azerbaijan, BA Bosnia and Herzegovina, BB Barbados, BD Bangladesh, BE Belgium, BF Burkina Faso,
BG Bulgaria, BH Bahrain, BI Burundi, BJ Benin, BL Saint Barthélemy, BM Bermuda, BN Brunei, BO Bolivia,
BQ Caribbean Netherlands, BR Brazil, BS Bahamas, BT Bhutan, BV Bouvet Island, BW Botswana, BY Belarus, BZ Belize,
CA Canada, CC Cocos Islands, CD Congo (Kinshasa), CF Central African Republic, CG Congo (Brazzaville), CH Switzerland,
CI Côte d'Ivoire, CK Cook Islands, CL Chile, CM Cameroon, CN China, CO Colombia, CR Costa Rica, CU Cuba, CV Cabo Verde,
CW Curaçao, CX Christmas Island, CY Cyprus, CZ Czechia, DE Germany, DJ Djibouti, DK Denmark, DM Dominica,
DO Dominican Republic, DZ Algeria, EC Ecuador, EE Estonia, EG Egypt, EH Western Sahara, ER Eritrea, ES Spain,
ET Ethiopia, FI Finland, FJ Fiji, FK Falkland Islands, FM Micronesia, FO Faroe Islands, FR France, GA Gabon,
GB United Kingdom, GD Grenada, GE Georgia, GF French Guiana, GG Guernsey, GH Ghana, GI Gibraltar, GL Greenland,
GM Gambia, GN Guinea, GP Guadeloupe, GQ Equatorial Guinea, GR Greece, GS South Georgia, GT Guatemala, GU Guam,
GW Guinea-Bissau, GY Guyana, HK Hong Kong, HM Heard and McDonald Islands, HN Honduras, HR Croatia, HT Haiti, HU Hungary,
ID Indonesia, IE Ireland, IL Israel, IM Isle of Man, IN India, IO British Indian Ocean Territory, IQ Iraq, IR Iran,
IS Iceland, IT Italy, JE Jersey, JM Jamaica, JO Jordan, JP Japan, KE Kenya, KG Kyrgyzstan, KH Cambodia, KI Kiribati,
KM Comoros, KN Saint Kitts and Nevis, KP North Korea, KR South Korea, KW Kuwait, KY Cayman Islands, KZ Kazakhstan,
LA Laos, LB Lebanon, LC Saint Lucia, LI Liechtenstein, LK Sri Lanka, LR Liberia, LS Lesotho, LT Lithuania,
LU Luxembourg, LV Latvia, LY Libya, MA Morocco, MC Monaco, MD Moldova, ME Montenegro, MF Saint Martin, MG Madagascar,
MH Marshall Islands, MK North Macedonia, ML Mali, MM Myanmar, MN Mongolia, MO Macao, MP Northern Mariana Islands,
MQ Martinique, MR Mauritania, MS Montserrat, MT Malta, MU Mauritius, MV Maldives, MW Malawi, MX Mexico, MY Malaysia,
MZ Mozambique, NA Namibia, NC New Caledonia, NE Niger, NF Norfolk Island, NG Nigeria, NI Nicaragua, NL Netherlands,
NO Norway, NP Nepal, NR Nauru, NU Niue, NZ New Zealand, OM Oman, PA Panama, PE Peru, PF French Polynesia,
PG Papua New Guinea, PH Philippines, PK Pakistan, PL Poland, PM Saint Pierre and Miquelon, PN Pitcairn, PR Puerto Rico,
PS Palestine, PT Portugal, PW Palau, PY Paraguay, QA Qatar, RE Réunion, RO Romania, RS Serbia, RU Russia, RW Rwanda,
SA Saudi Arabia, SB Solomon Islands, SC Seychelles, SD Sudan, SE Sweden, SG Singapore, SH Saint Helena, SI Slovenia,
SJ Svalbard, SK Slovakia, SL Sierra Leone, SM San Marino, SN Senegal, SO Somalia, SR Suriname, SS South Sudan,
ST São Tomé and Príncipe, SV El Salvador, SX Sint Maarten, SY Syria, SZ Eswatini, TC Turks and Caicos Islands, TD Chad,
TF French Southern Territories, TG Togo, TH Thailand, TJ Tajikistan, TK Tokelau, TL Timor-Leste, TM Turkmenistan,
TN Tunisia, TO Tonga, TR Türkiye, TT Trinidad and Tobago, TV Tuvalu, TW Taiwan, TZ Tanzania, UA Ukraine, UG Uganda,
UM US Minor Outlying Islands, US United States, UY Uruguay, UZ Uzbekistan, VA Vatican, VC Saint Vincent,
VE Venezuela, VG British Virgin Islands, VI US Virgin Islands, VN Vietnam, VU Vanuatu, WF Wallis and Futuna, WS Samoa,
XK Kosovo, YE Yemen, YT Mayotte, ZA South Africa, ZM Zambia, ZW Zimbabwe"""
NAMES = {entry[:2]: entry[3:] for entry in _NAMES.replace("\n", " ").split(", ")}
_CODES = {
    **{code.casefold(): code for code in (*NAMES, *GROUPS)},
    **{name.casefold(): code for code, name in NAMES.items()},
    **{alias.casefold(): code for alias, code in _ALIASES.items()},
}


def code(text: str) -> str:
    """The letters of a country or group, by its letters or its English name. Raises BadRequest, with the nearest."""
    if found := _CODES.get(text.strip().casefold()):
        return found
    near = difflib.get_close_matches(text.strip().casefold(), _CODES, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(dict.fromkeys(named(_CODES[n]) for n in near))}?" if near else ""
    raise BadRequest(f"no country {text!r}", hint=hint or "two letters of ISO 3166 such as DE, or EU, or EEA")


def named(letters: str) -> str:
    """The country for a reader: `FR (France)`."""
    return f"{letters} ({NAMES[letters]})" if letters in NAMES else letters


def expand(texts: Iterable[str]) -> frozenset[str]:
    """All these countries; of a group its members, and the group's own letters. Raises BadRequest."""
    codes = {code(text) for text in texts}
    return frozenset(codes.union(*(GROUPS[each] for each in codes if each in GROUPS)))
