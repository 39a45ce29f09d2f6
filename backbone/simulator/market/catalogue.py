"""The markets of the embedded exchange: their names, listing times, price grids and how busy they are.

Nothing here depends on the seed: the same markets are listed on every embedded exchange, only their prices
differ. A market's liquidity follows its rank: the first trades about once a second, the long tail in 7 % of
its minutes, the last six once an hour. Volumes and prices are integers in units of the market's own decimals,
so that every sum is exact.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from backbone.errors import InputError

__all__ = ["CAUTIONS", "TICKS", "Market", "catalogue", "decimals_of", "hash_text", "new_market", "rescaled", "tick_of"]

CAUTIONS = (
    "PRICE_FLUCTUATIONS",
    "TRADING_VOLUME_SOARING",
    "DEPOSIT_AMOUNT_SOARING",
    "GLOBAL_PRICE_DIFFERENCES",
    "CONCENTRATION_OF_SMALL_ACCOUNTS",
)

_DAY_US = 86_400_000_000
_FIRST_LISTING_US = 1_506_308_400_000_000  # 2017-09-25T03:00Z
_LAST_LISTING_US = 1_790_000_000_000_000  # 2026-09-21

# code English_name Korean_name price; a space inside a name is written _. Ordered by turnover, busiest first.
_KRW = """
BTC Bitcoin 비트코인 160000000;ETH Ethereum 이더리움 6000000;XRP XRP 엑스알피 4200;
SOL Solana 솔라나 260000;DOGE Dogecoin 도지코인 320;USDT Tether 테더 1390;ADA Ada 에이다 1250;
TRX TRON 트론 480;SUI Sui 수이 5000;LINK Chainlink 체인링크 33000;AVAX Avalanche 아발란체 32000;
XLM Stellar_Lumen 스텔라루멘 580;HBAR Hedera 헤데라 340;BCH Bitcoin_Cash 비트코인캐시 780000;
SHIB Shiba_Inu 시바이누 0.018;DOT Polkadot 폴카닷 5700;PEPE Pepe 페페 0.016;ENA Ethena 에테나 900;
ONDO Ondo_Finance 온도파이낸스 1350;AAVE Aave 에이브 440000;NEAR NEAR_Protocol 니어프로토콜 3600;
ETC Ethereum_Classic 이더리움클래식 31000;APT Aptos 앱토스 6300;ARB Arbitrum 아비트럼 700;
STX Stacks 스택스 980;WLD Worldcoin 월드코인 1400;VET VeChain 비체인 34;ALGO Algorand 알고랜드 350;
ATOM Cosmos 코스모스 6400;RENDER Render_Token 렌더토큰 5100;SEI Sei 세이 440;
TRUMP OFFICIAL_TRUMP 오피셜트럼프 12500;BONK Bonk 봉크 0.031;INJ Injective 인젝티브 19000;
IMX ImmutableX 이뮤터블엑스 750;POL Polygon_Ecosystem_Token 폴리곤에코시스템토큰 350;
GRT The_Graph 더그래프 130;FIL Filecoin 파일코인 3400;SAND The_Sandbox 샌드박스 400;
MANA Decentraland 디센트럴랜드 420;CRO Cronos 크로노스 210;A Vaulta 볼타 700;
TIA Celestia 셀레스티아 2400;JUP Jupiter 주피터 700;PYTH Pyth_Network 피스네트워크 170;
USDC USD_Coin 유에스디코인 1390;VIRTUAL Virtuals_Protocol 버추얼프로토콜 1700;
LPT Livepeer 라이브피어 9500;MOODENG Moo_Deng 무뎅 230;PENGU Pudgy_Penguins 펏지펭귄 45;
STRK Starknet 스타크넷 180;ZRO LayerZero 레이어제로 2900;BLUR Blur 블러 120;
MASK Mask_Network 마스크네트워크 1900;XTZ Tezos 테조스 1200;THETA Theta_Token 쎄타토큰 1150;
FLOW Flow 플로우 550;AXS Axie_Infinity 엑시인피니티 3500;CHZ Chiliz 칠리즈 58;NEO NEO 네오 9500;
BSV Bitcoin_SV 비트코인에스브이 38000;GAS GAS 가스 5000;QTUM Qtum 퀀텀 3500;
BTT BitTorrent 비트토렌트 0.00091;EGLD MultiversX 멀티버스엑스 21000;KAVA Kava 카바 540;
ZIL Zilliqa 질리카 17;IOST IOST 아이오에스티 5.2;WAXP WAX 왁스 30;ICX ICON 아이콘 190;
ONT Ontology 온톨로지 210;LSK Lisk 리스크 480;STEEM Steem 스팀 190;SXP Solar 솔라 260;
POWR Power_Ledger 파워렛저 240;ARK Ark 아크 610;ANKR Ankr 앵커 21;AERGO Aergo 아르고 170;
CVC Civic 시빅 150;STORJ Storj 스토리지 350;ELF aelf 엘프 330;
BAT Basic_Attention_Token 베이직어텐션토큰 230;HIVE Hive 하이브 300;ORBS Orbs 오브스 27;
MOC Moss_Coin 모스코인 74;MVL MVL 엠블 4.6;HUNT HUNT 헌트 330;MLK MiL.k 밀크 240;
STRAX Stratis 스트라티스 60;CARV CARV 카브 390;MEW cat_in_a_dogs_world 캣인어독스월드 3.7;
W Wormhole 웜홀 113;AGLD Adventure_Gold 어드벤처골드 1300;UXLINK UXLINK 유엑스링크 480;
AKT Akash_Network 아카시네트워크 1600;BIGTIME Big_Time 빅타임 78;ORCA Orca 오르카 3300;
COW CoW_Protocol 카우프로토콜 580;BERA Berachain 베라체인 3600;LAYER Solayer 솔레이어 800;
KAITO Kaito 카이토 1500;IP Story 스토리 8700;ANIME Animecoin 애니메코인 25;MOVE Movement 무브먼트 180;
DRIFT Drift 드리프트 780;RAY Raydium 레이디움 4800;JTO Jito 지토 2700;PENDLE Pendle 펜들 7200;
UNI Uniswap 유니스왑 14500;MNT Mantle 맨틀 1700;CKB Nervos_Network 너보스 8.1;BEAM Beam 빔 11;
GLM Golem 골렘 330;SAFE Safe 세이프 620;ENS Ethereum_Name_Service 이더리움네임서비스 38000;
ATH Aethir 에이셔 45;CTC Creditcoin 크레딧코인 1000;ID SPACE_ID 스페이스아이디 250;
ZETA ZetaChain 제타체인 280;MINA Mina 미나 250;TAIKO Taiko 타이코 610;T Threshold 쓰레스홀드 23;
POLYX Polymesh 폴리매쉬 200;JST JUST 저스트 47;CELO Celo 셀로 430;BORA BORA 보라 120;
META Metadium 메타디움 23;DKA dKargo 디카르고 20;AQT Alpha_Quark_Token 알파쿼크 1500;
PUNDIX Pundi_X 펀디엑스 480;ASTR Astar 아스타 36;SNT Status_Network_Token 스테이터스네트워크토큰 37;
1INCH 1inch_Network 1인치네트워크 360;GMT STEPN 스테픈 63;ARDR Ardor 아더 120;HPO Hippocrat 히포크랏 16;
TT ThunderCore 썬더코어 3.9;TFUEL Theta_Fuel 쎄타퓨엘 49;CBK Cobak_Token 코박토큰 800;
AHT AhaToken 아하토큰 6.5;IQ IQ.wiki 아이큐 5.5;GAME2 GameBuild 게임빌드 2.6;
STG Stargate_Finance 스타게이트파이낸스 250;AUCTION Bounce_Token 바운스토큰 14000;
VTHO VeThor_Token 비토르토큰 2.7;SC Siacoin 시아코인 4.8;XEC eCash 이캐시 0.029;
FCT2 FirmaChain 피르마체인 51;LOOM Loom_Network 룸네트워크 21;KNC Kyber_Network 카이버네트워크 550;
MTL Metal 메탈 1000;MED MediBloc 메디블록 8.1;WAVES Waves 웨이브 1600;DENT Dent 덴트 1.1;
UPP Sentinel_Protocol 센티넬프로토콜 78;AWE AWE_Network 에이더블유이 74;TON TON 톤 4400;
CRV Curve 커브 1200;COMP Compound 컴파운드 66000;YGG Yield_Guild_Games 일드길드게임즈 230;
RVN Ravencoin 레이븐코인 21;ZRX 0x_Protocol 제로엑스 350;TOKAMAK Tokamak_Network 토카막네트워크 1400;
SONIC Sonic_SVM 소닉에스브이엠 290;NXPC NXPC 넥스페이스 1100;SOPH Sophon 소폰 48;
PROVE Succinct 서싱트 1500;CYBER CyberConnect 사이버커넥트 2400;BABY Babylon 바빌론 71;
INIT Initia 이니시아 520;SIGN Sign 사인 100;OM MANTRA 만트라 320;DEEP DeepBook 딥북 210;
RED RedStone 레드스톤 520;VANA Vana 바나 6800;AXL Axelar 악셀라 450;WCT WalletConnect 월렛커넥트 460;
NEWT Newton_Protocol 뉴턴프로토콜 400;SAHARA Sahara_AI 사하라에이아이 120;HYPER Hyperlane 하이퍼레인 610;
OBT Orbiter_Finance 오비터파이낸스 12;PARTI Particle_Network 파티클네트워크 270;
CARE Carelink 케어링크 19;TREE Treehouse 트리하우스 420;SPK Spark 스파크 130;ERA Caldera 칼데라 1300;
C Chainbase 체인베이스 340;HAEDAL Haedal_Protocol 해달프로토콜 210;BLAST Blast 블라스트 3.6;
EIGEN EigenLayer 아이겐레이어 2000;BIO Bio_Protocol 바이오프로토콜 180;ME Magic_Eden 매직에덴 1000;
GRASS Grass 그래스 1100;PLUME Plume 플룸 130;KERNEL KernelDAO 커널다오 280;SHELL MyShell 마이쉘 210;
ARKM Arkham 아캄 800;MOCA Moca_Network 모카네트워크 110;RLC iExec_RLC 아이젝 1500;OAS Oasys 오아시스 19;
GTC Gitcoin 깃코인 450;HOLO Holoworld_AI 홀로월드 420;AVNT Avantis 아반티스 1400;LINEA Linea 리네아 38;
WLFI World_Liberty_Financial 월드리버티파이낸셜 310;OPEN OpenLedger 오픈렛저 900;
PUMP Pump.fun 펌프펀 7.6;TOWNS Towns_Protocol 타운즈프로토콜 40;SYRUP Maple_Finance 메이플파이낸스 620;
API3 API3 에이피아이쓰리 1700;RSR Reserve_Rights 리저브라이트 12;ACS Access_Protocol 액세스프로토콜 1.6;
VVV Venice_Token 베니스토큰 3900;PROMPT Wayfinder 웨이파인더 330;HOME Defi_App 디파이앱 48;
COMMON Common_Protocol 커먼프로토콜 12;BARD Lombard 롬바드 1500;AVAIL Avail 어베일 21;
ALT AltLayer 알트레이어 50;EDU Open_Campus 오픈캠퍼스 220;WOO WOO 우네트워크 100;
DYM Dymension 디멘션 380;CETUS Cetus_Protocol 세투스프로토콜 160;GMX GMX 지엠엑스 23000;
SKY Sky_Protocol 스카이프로토콜 110;HFT Hashflow 해시플로우 120;PROM Prom 프롬 13000;
MAGIC Treasure 매직 330;ACX Across_Protocol 어크로스프로토콜 220;MIRA Mira_Network 미라네트워크 1200;
FF Falcon_Finance 팔콘파이낸스 270;BIRB Moonbirds 문버드 310;FLUID Fluid 플루이드 7800;
ZKP zkPass 지케이패스 190;ORDER Orderly 오덜리 410;CPOOL Clearpool 클리어풀 210;
ZBT Zerobase 제로베이스 320;YB Yield_Basis 일드베이시스 640;EUL Euler 오일러 14000;
ZKC Boundless 바운드리스 680;PLAY Play_Protocol 플레이프로토콜 82;MON Monad 모나드 37;
MMT Momentum 모멘텀 610;ALLO Allora 알로라 350;KITE Kite 카이트 140;MET Meteora 메테오라 520;
CC Canton_Network 캔톤네트워크 150;AZTEC Aztec 아즈텍 40;IRYS Irys 아이리스 51;SENT Sentient 센티언트 42;
LA Lagrange 라그랑주 480;TURBO Turbo 터보 5.6;DOOD Doodles 두들즈 4.8;SUPER SuperVerse 슈퍼버스 790;
XPL Plasma 플라스마 600;0G Zero_Gravity 제로지 2700;ASTER Aster 아스터 1600;2Z DoubleZero 더블제로 310;
EDEN OpenEden 오픈에덴 290;ENSO Enso 엔소 1700;RECALL Recall 리콜 400;CLO Yei_Finance 예이파이낸스 430;
KMNO Kamino 카미노 84;TNSR Tensor 텐서 150;ZORA Zora 조라 95;RESOLV Resolv 리졸브 190;
AUDIO Audius 오디우스 81;GALA Gala 갈라 22;LRC Loopring 루프링 120;OCEAN Ocean_Protocol 오션프로토콜 390;
RAD Radworks 라드웍스 880;BAL Balancer 밸런서 1500;SNX Synthetix 신세틱스 920;
YFI Yearn_Finance 연파이낸스 7400000;SUSHI SushiSwap 스시스왑 1000;CELR Celer_Network 셀러네트워크 10;
CTSI Cartesi 카르테시 97;COTI COTI 코티 70;OGN Origin_Token 오리진토큰 86;DIA DIA 디아 760;
PHA Phala_Network 팔라네트워크 150;RIF Rootstock 루트스톡 73;NKN NKN 엔케이엔 33;MTRG Meter 미터 310;
GHST Aavegotchi 아베고치 620;FORTH Ampleforth 앰플포스 3100;BICO Biconomy 바이코노미 140;
HIGH Highstreet 하이스트리트 690;LQTY Liquity 리퀴티 1200;PERP Perpetual 퍼페추얼 350;
POND Marlin 말린 11;QKC QuarkChain 쿼크체인 8.4;REI REI_Network 레이네트워크 19;
SLP Smooth_Love_Potion 스무스러브포션 2.2;
"""

_BTC = (
    "ETH XRP SOL DOGE ADA TRX LINK DOT BCH XLM NEAR AAVE UNI APT SUI AVAX ATOM ALGO "
    "SIGN ZIL AERGO ARK STORJ CVC GLM LSK DGB RVN BAT MANA"
)
_USDT = "BTC ETH XRP SOL DOGE ADA TRX LINK SUI AVAX PEPE BONK ONDO ENA SHIB NEAR APT ARB SEI POL"

_MAJORS = ("BTC", "ETH", "XRP", "SOL", "DOGE")

_LISTED_US = {  # where history is known to begin
    "KRW-BTC": _FIRST_LISTING_US,
    "KRW-ETH": _FIRST_LISTING_US,
    "KRW-XRP": _FIRST_LISTING_US,
    "KRW-USDT": 1_717_725_600_000_000,  # 2024-06-07T02:00Z
    "KRW-SOL": 1_634_266_800_000_000,  # 2021-10-15T03:00Z
    "KRW-DOGE": 1_614_222_000_000_000,  # 2021-02-25T03:00Z
    "KRW-ADA": 1_506_384_000_000_000,  # 2017-09-26
}

# floor of a price band, its tick; per quote currency, ascending
TICKS: dict[str, tuple[tuple[float, float], ...]] = {
    "KRW": (
        (0.0, 1e-8), (1e-5, 1e-7), (1e-4, 1e-6), (1e-3, 1e-5), (1e-2, 1e-4), (1e-1, 1e-3), (1.0, 1e-2),
        (10.0, 1e-1), (100.0, 1.0), (1e3, 1.0), (5e3, 5.0), (1e4, 10.0), (5e4, 50.0), (1e5, 100.0),
        (5e5, 500.0), (1e6, 1000.0),
    ),
    "BTC": ((0.0, 1e-8),),
    "USDT": (
        (0.0, 1e-8), (1e-4, 1e-7), (1e-3, 1e-6), (1e-2, 1e-5), (1e-1, 1e-4), (1.0, 1e-3), (10.0, 1e-2),
    ),
}  # fmt: skip

_VALUE_DECIMALS = {"KRW": 8, "BTC": 16, "USDT": 10}
_TURNOVER = {"KRW": 600_000.0, "BTC": 0.004, "USDT": 300.0}  # of an average trade, quote units
_QUOTE_KRW = {"KRW": 1.0, "BTC": 160_000_000.0, "USDT": 1390.0}


@dataclass(frozen=True)
class Market:
    """One market, as the tape sees it.

    ``trades_per_minute`` is its long-run mean; ``price`` the level it hovers around; ``drift`` the yearly
    growth of it in powers of two; ``day_volatility`` in powers of two; ``price_decimals`` and
    ``volume_decimals`` the integer units of the tape. ``history`` names the tape that it follows, which a rename keeps.
    ``factor`` is how many of today's price units one of the tape's is (a redenomination changes it). It is unknown from
    ``delisted_us`` on; ``state`` and ``suspended`` are what the stream says of it.
    """

    code: str
    korean_name: str
    english_name: str
    warning: bool
    cautions: tuple[str, ...]
    listed_us: int
    price: float
    drift: float
    day_volatility: float
    trades_per_minute: float
    trade_value: float
    price_decimals: int
    volume_decimals: int
    history: str
    factor: Fraction = Fraction(1)
    delisted_us: int | None = None
    state: str = "ACTIVE"
    suspended: bool = False

    @property
    def quote(self) -> str:
        return self.code.partition("-")[0]

    @property
    def base(self) -> str:
        return self.code.partition("-")[2]

    @property
    def shown_decimals(self) -> int:
        """Digits after the point of its prices on the wire."""
        return max(0, self.price_decimals + _digits(self.factor))

    @property
    def shown_volume_decimals(self) -> int:
        """Digits after the point of its volumes on the wire."""
        return max(0, self.volume_decimals + _digits(1 / self.factor))

    def prices(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The tape's integer prices as the wire has them: the float64 nearest to each decimal."""
        return _decimals_of(units, self.factor, self.price_decimals)

    def volumes(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The tape's integer volumes as the wire has them."""
        return _decimals_of(units, 1 / self.factor, self.volume_decimals)


def _digits(factor: Fraction) -> int:
    """The decimal places that a finite decimal factor adds (below 0: removes)."""
    exponent = (Decimal(factor.numerator) / factor.denominator).normalize().as_tuple().exponent
    assert isinstance(exponent, int)  # no factor is infinite
    return -exponent


def _decimals_of(units: npt.NDArray[np.int64], factor: Fraction, decimals: int) -> npt.NDArray[np.float64]:
    if factor == 1:
        return np.true_divide(units, 10.0**decimals)
    places = _digits(factor)
    whole = units * int(factor * Fraction(10) ** places)
    decimals += places
    if decimals < 0:
        whole, decimals = whole * 10**-decimals, 0
    shown: npt.NDArray[np.float64] = np.true_divide(whole, 10.0**decimals)
    return shown


@functools.lru_cache(maxsize=8192)  # each new exchange of a process asks a thousand, of the same markets
def hash_text(text: str) -> int:
    """FNV-1a of a text, 64 bits: the same on every machine, unlike `hash`."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    value ^= value >> 29
    value = (value * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 32)


def tick_of(quote: str, price: float) -> float:
    """The price step at `price` in a market quoted in `quote`."""
    return next(tick for floor, tick in reversed(TICKS[quote]) if price >= floor or floor == 0)


def decimals_of(step: float) -> int:
    return max(0, -int(f"{step:.0e}".partition("e")[2]))


def _rate(rank: int, total: int) -> float:
    """Trades a minute by rank: about a power law, then the thin tail, then the very thin."""
    if rank >= total - 6:
        return 1 / 60
    if rank >= total - 30:
        return 0.0726  # trades in 7 % of minutes
    return float(round(max(0.35, 60.0 / (1 + rank) ** 1.05), 4))


def _listed_us(code: str, salt: int, rank: int) -> int:
    if code in _LISTED_US:
        return _LISTED_US[code]
    fraction = ((salt >> 20) % 10_000) / 10_000
    skew = fraction * 0.4 if rank < 60 else 0.15 + 0.85 * fraction  # busy markets are the old ones
    day = int(_FIRST_LISTING_US + skew * (_LAST_LISTING_US - _FIRST_LISTING_US)) // _DAY_US * _DAY_US
    return day + ((salt >> 40) % 10) * 3_600_000_000


def _build(code: str, english: str, korean: str, price: float, rank: int, total: int, scale: float) -> Market:
    quote = code.partition("-")[0]
    salt = hash_text(code)
    majors = rank < 6 and quote == "KRW"
    base = code.partition("-")[2]
    moves = hash_text(base)  # a coin moves alike in every quote currency
    drift = 0.45 if base == "BTC" else (((moves >> 8) % 400) / 1000 - 0.2)
    stable = base in ("USDT", "USDC")
    volatility = 0.004 if stable else 0.035 + ((moves >> 16) % 40) / 1000 + (0.0 if base in _MAJORS else 0.02)
    drift = 0.0 if stable else drift
    low = price / 2 ** (8 * max(drift, 0.0) + 60 * volatility)  # how far the price can fall within a decade
    price_decimals = decimals_of(tick_of(quote, low))
    raised = tuple(name for name in CAUTIONS if hash_text(code + name) % 23 == 0)
    return Market(
        code=code,
        korean_name=korean.replace("_", " "),
        english_name=english.replace("_", " "),
        warning=not majors and (salt >> 30) % 60 == 0,
        cautions=() if majors else raised,
        listed_us=_listed_us(code, salt, rank),
        price=price,
        drift=drift,
        day_volatility=volatility,
        trades_per_minute=_rate(rank, total) * scale,
        trade_value=_TURNOVER[quote] * (6.0 if code == "KRW-BTC" else 1.0),
        price_decimals=price_decimals,
        volume_decimals=max(0, min(8, _VALUE_DECIMALS[quote] - price_decimals)),
        history=code,
    )


def new_market(code: str, listed_us: int) -> Market:
    """A market of the catalogue, or one made up for a code that it lacks, listed at a time of the caller's choice."""
    known = catalogue().get(code)
    if known is not None:
        return replace(known, listed_us=listed_us)
    quote, dash, base = code.partition("-")
    if quote not in TICKS or not dash or not base or code != code.upper():
        raise InputError("market", code, "a code such as KRW-NEW, in KRW, BTC or USDT")
    return replace(_build(code, base, base, 1000.0 / _QUOTE_KRW[quote], 40, 200, 1.0), listed_us=listed_us)


def rescaled(market: Market, factor: object) -> Market:
    """The market after a redenomination: prices times `factor`, volumes divided by it, turnovers as they were."""
    try:
        share = Fraction(str(factor))
    except (ValueError, ZeroDivisionError) as exc:
        raise InputError("factor", factor, "a number above 0") from exc
    total = market.factor * share
    if share <= 0 or not all((one * 10**8).denominator == 1 for one in (total, 1 / total)):
        raise InputError("factor", factor, "a decimal above 0 whose inverse is one too, such as 10, 0.001 or 4")
    return replace(market, factor=total)


@functools.cache
def catalogue() -> dict[str, Market]:
    """Every market by code: KRW first, busiest first, then BTC and USDT."""
    rows = [row.split() for row in _KRW.replace("\n", "").split(";") if row.strip()]
    names = {row[0]: (row[1], row[2], float(row[3])) for row in rows}
    markets = [
        _build(f"KRW-{row[0]}", row[1], row[2], float(row[3]), rank, len(rows), 1.0) for rank, row in enumerate(rows)
    ]
    for quote, listing, scale in (("BTC", _BTC, 0.02), ("USDT", _USDT, 0.1)):
        bases = listing.split()
        for rank, base in enumerate(bases):
            english, korean, krw = names.get(base, (base, base, 1000.0))
            price = krw / _QUOTE_KRW[quote]
            markets.append(_build(f"{quote}-{base}", english, korean, price, rank, len(bases) + 40, scale))
    return {market.code: market for market in markets}
