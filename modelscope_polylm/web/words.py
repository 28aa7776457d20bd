"""What the page says, in English, Chinese and Vietnamese; each text is found by its English one."""

from __future__ import annotations

from typing import NamedTuple


class Word(NamedTuple):
    """A text in the other languages of the page."""

    zh: str
    vi: str


class Words:
    """Says texts in one language.

    Args:
        language: one of `LANGUAGES`.
    """

    def __init__(self, language: str = "en") -> None:
        self.language = language

    def __call__(self, text: str, **values: object) -> str:
        """The text in this language; the names in braces become the values."""
        word = WORDS.get(text)
        translated = text if word is None or self.language == "en" else getattr(word, self.language)
        return str(translated).format(**values) if values else str(translated)


LANGUAGES = {"en": "English", "zh": "中文", "vi": "Tiếng Việt"}
"""What each language of the page calls itself."""


def preferred_language(header: str) -> str:
    """The language of the page for a browser's Accept-Language; English where none of its languages is there."""
    weights: dict[str, float] = {}
    for part in header.split(","):
        tag, _, quality = part.partition(";q=")
        try:
            weights.setdefault(tag.strip().lower().partition("-")[0], float(quality or 1))
        except ValueError:  # as in a header that no browser sends
            continue
    known = {language: weight for language, weight in weights.items() if language in LANGUAGES and weight > 0}
    return max(known, key=lambda language: known[language], default="en")


WORDS = {
    "Chat": Word("对话", "Trò chuyện"),
    "Translate": Word("翻译", "Dịch"),
    "Model": Word("模型", "Mô hình"),
    "Language of the page": Word("页面语言", "Ngôn ngữ của trang"),
    # notes
    (
        "This is the bundled demonstration model. All it can do is translate “X is the capital of Y.” from English "
        "into the 17 other languages, for 40 countries; anything else gives nonsense."
    ): Word(
        "这是自带的演示模型。它只会把 40 个国家的 “X is the capital of Y.” 从英语译成其他 17 种语言，"
        "问别的只会胡言乱语。",
        "Đây là mô hình minh hoạ đi kèm. Nó chỉ biết dịch câu “X is the capital of Y.” từ tiếng Anh sang 17 ngôn ngữ "
        "khác, cho 40 nước; hỏi điều khác thì câu trả lời vô nghĩa.",
    ),
    "This release continues texts. It was not trained to follow instructions or to hold a conversation.": Word(
        "这个版本只会续写文本，没有受过遵循指令或对话的训练。",
        "Bản này chỉ viết tiếp văn bản, không được huấn luyện để làm theo chỉ dẫn hay trò chuyện.",
    ),
    "This release has no format for conversations: each message is answered on its own.": Word(
        "这个版本没有多轮对话的格式：每条消息都单独回答。",
        "Bản này không có định dạng hội thoại: mỗi tin nhắn được trả lời riêng.",
    ),
    "The release of this model is not known: start the demo with --release to send messages.": Word(
        "认不出这个模型的版本：请用 --release 启动页面，才能发送消息。",
        "Không rõ mô hình này là bản nào: hãy khởi động trang với --release để gửi tin nhắn.",
    ),
    # chat
    "Send": Word("发送", "Gửi"),
    "Stop": Word("停止", "Dừng"),
    "Retry": Word("重新回答", "Trả lời lại"),
    "Undo": Word("撤回", "Hoàn tác"),
    "Clear": Word("清空", "Xoá"),
    "Save as Markdown": Word("存为 Markdown", "Lưu dạng Markdown"),
    "Save as JSON": Word("存为 JSON", "Lưu dạng JSON"),
    "Write a message": Word("输入消息", "Viết tin nhắn"),
    "Message": Word("消息", "Tin nhắn"),
    "Conversation": Word("对话内容", "Cuộc trò chuyện"),
    "Examples": Word("示例", "Ví dụ"),
    "Options": Word("选项", "Tuỳ chọn"),
    "User": Word("用户", "Người dùng"),
    "Assistant": Word("助手", "Trợ lý"),
    "Nothing leaves the machine that runs this page. Your browser keeps the chat until you clear it.": Word(
        "任何内容都不会离开运行本页的机器。对话保存在你的浏览器里，直到你清空它。",
        "Không có gì rời khỏi máy chạy trang này. Trình duyệt của bạn giữ cuộc trò chuyện cho đến khi bạn xoá.",
    ),
    "(no answer)": Word("（没有回答）", "(không có câu trả lời)"),
    "Write a message first.": Word("请先输入消息。", "Hãy viết tin nhắn trước."),
    "There is nothing to answer again.": Word("没有可以重新回答的内容。", "Chưa có gì để trả lời lại."),
    "There is nothing to take back.": Word("没有可以撤回的内容。", "Chưa có gì để hoàn tác."),
    "waiting for the answer": Word("正在等待回答", "đang chờ câu trả lời"),
    "place {place} in the queue": Word("排在第 {place} 位", "đứng thứ {place} trong hàng chờ"),
    "{seconds} s": Word("{seconds} 秒", "{seconds} giây"),
    "Stopped after {seconds} s": Word("{seconds} 秒后停止", "Đã dừng sau {seconds} giây"),
    "{tokens} tokens in {seconds} s · {used} of {context} tokens of the context used": Word(
        "{seconds} 秒生成 {tokens} 个词元 · 上下文已用 {used} / {context} 个词元",
        "{tokens} token trong {seconds} giây · đã dùng {used} trên {context} token ngữ cảnh",
    ),
    "Something went wrong on the server, and its log tells what. Try again, or with other options.": Word(
        "服务器出了问题，详情见其日志。请重试，或换用别的选项。",
        "Máy chủ gặp lỗi, nhật ký của nó cho biết chi tiết. Hãy thử lại, hoặc đổi tuỳ chọn.",
    ),
    # translations
    "Text": Word("原文", "Văn bản"),
    "From": Word("源语言", "Từ"),
    "To": Word("目标语言", "Sang"),
    "Swap languages": Word("交换语言", "Đổi chiều"),
    "Detect the language": Word("自动检测", "Tự phát hiện"),
    "Width of the search": Word("搜索宽度", "Độ rộng tìm kiếm"),
    "Beams of beam search; more take longer.": Word(
        "束搜索的束数，越多越慢。", "Số chùm của tìm kiếm chùm; càng nhiều càng lâu."
    ),
    "Results": Word("结果数", "Số kết quả"),
    "Translations to show, the best first.": Word("显示几个译文，从好到差。", "Số bản dịch hiển thị, tốt nhất trước."),
    "Ctrl+Enter translates.": Word("按 Ctrl+Enter 翻译。", "Ctrl+Enter để dịch."),
    "Write a sentence first.": Word("请先输入句子。", "Hãy viết một câu trước."),
    "Score": Word("分数", "Điểm"),
    "Translation": Word("译文", "Bản dịch"),
    "Copy": Word("复制", "Sao chép"),
    "{beams} beams in {seconds} s": Word("{beams} 束，{seconds} 秒", "{beams} chùm trong {seconds} giây"),
    "from {language}, as detected": Word("检测到的源语言：{language}", "phát hiện ngôn ngữ: {language}"),
    "to be looked at: {count} of {all} ({problems})": Word(
        "需要检查：{all} 句中的 {count} 句（{problems}）", "cần xem lại: {count} trên {all} ({problems})"
    ),
    # the model
    "Release": Word("版本", "Bản"),
    "Source": Word("来源", "Nguồn"),
    "Parameters": Word("参数量", "Tham số"),
    "Network": Word("网络", "Mạng"),
    "Context": Word("上下文", "Ngữ cảnh"),
    "Vocabulary": Word("词表", "Từ vựng"),
    "Prompt format": Word("提示词格式", "Định dạng prompt"),
    "Runs on": Word("运行于", "Chạy trên"),
    "Default options": Word("默认选项", "Tuỳ chọn mặc định"),
    "unknown": Word("未知", "không rõ"),
    "a folder": Word("文件夹", "một thư mục"),
    "bundled with modelscope_polylm": Word("随 modelscope_polylm 附带", "đi kèm modelscope_polylm"),
    "{layers} layers, {heads} heads, hidden size {size}": Word(
        "{layers} 层，{heads} 头，隐藏维度 {size}", "{layers} lớp, {heads} đầu, kích thước ẩn {size}"
    ),
    "{tokens} tokens, prompt and answer together": Word(
        "{tokens} 个词元，提示词与回答合计", "{tokens} token, gồm cả prompt và câu trả lời"
    ),
    "{pieces} pieces": Word("{pieces} 个词元", "{pieces} mảnh"),
    "{device}, {dtype}, {backend} backend": Word(
        "{device}，{dtype}，{backend} 后端", "{device}, {dtype}, backend {backend}"
    ),
    # names of options
    "Longest answer": Word("最长回答", "Độ dài tối đa"),
    "Draw at random": Word("随机采样", "Chọn ngẫu nhiên"),
    "Temperature": Word("温度", "Nhiệt độ"),
    "Share of likely tokens": Word("可能词元的份额", "Phần token có khả năng"),
    "Number of likely tokens": Word("可能词元的个数", "Số token có khả năng"),
    "Avoid repetition": Word("避免重复", "Tránh lặp"),
    "Random seed": Word("随机种子", "Hạt giống ngẫu nhiên"),
    "Longest prompt and answer": Word("提示词与回答的最大长度", "Độ dài tối đa gồm cả prompt"),
    "Shortest answer": Word("最短回答", "Độ dài tối thiểu"),
    "Shortest prompt and answer": Word("提示词与回答的最小长度", "Độ dài tối thiểu gồm cả prompt"),
    "End of the search": Word("搜索何时结束", "Kết thúc tìm kiếm"),
    "Favour length": Word("偏向长回答", "Ưu tiên độ dài"),
    "Least probability": Word("最低概率", "Xác suất tối thiểu"),
    "Typical share": Word("典型份额", "Phần điển hình"),
    "No sequence twice": Word("序列不重复", "Không lặp chuỗi"),
    "Stop at these texts": Word("遇到这些文本时停止", "Dừng khi gặp các văn bản này"),
    "Rules of the search": Word("搜索规则", "Quy tắc tìm kiếm"),
    "(unset)": Word("（未设置）", "(chưa đặt)"),
    "unset": Word("未设置", "chưa đặt"),
    "One a line.": Word("每行一个。", "Mỗi dòng một văn bản."),
    # help of options
    "Most tokens to add (128 if max_length is unset too).": Word(
        "最多新增多少个词元（若 max_length 也未设置则为 128）。",
        "Số token tối đa được thêm (128 nếu max_length cũng chưa đặt).",
    ),
    "Draw the next token at random instead of taking the most probable one.": Word(
        "随机抽取下一个词元，而不是取概率最高的。",
        "Chọn ngẫu nhiên token tiếp theo thay vì lấy token có xác suất cao nhất.",
    ),
    "Divides the logits when sampling; lower is more predictable.": Word(
        "采样时 logits 除以它；越低越可预测。", "Chia logit khi lấy mẫu; càng thấp càng dễ đoán."
    ),
    "Sample among the most probable tokens that hold this share.": Word(
        "只在合计占有这一概率份额的最可能词元中采样。",
        "Lấy mẫu trong các token có xác suất cao nhất chiếm phần này.",
    ),
    "Sample among this many most probable tokens; 0 switches it off.": Word(
        "只在概率最高的这么多个词元中采样；0 表示关闭。",
        "Lấy mẫu trong chừng này token có xác suất cao nhất; 0 là tắt.",
    ),
    "Number of beams of beam search; 1 is greedy search or sampling.": Word(
        "束搜索的束数；1 表示贪心搜索或采样。", "Số chùm của tìm kiếm chùm; 1 là tham lam hoặc lấy mẫu."
    ),
    "Makes tokens that occurred less probable; 1 switches it off.": Word(
        "降低已出现词元的概率；1 表示关闭。", "Giảm xác suất của token đã xuất hiện; 1 là tắt."
    ),
    "Makes sampling repeatable: the same answer in any company.": Word(
        "使采样可以重复：无论与谁同时运行，回答都相同。",
        "Giúp lấy mẫu lặp lại được: cùng một câu trả lời dù chạy cùng ai.",
    ),
    "Most tokens of prompt and answer together; max_new_tokens wins.": Word(
        "提示词与回答合计最多多少个词元；max_new_tokens 优先。",
        "Số token tối đa của prompt và câu trả lời; max_new_tokens được ưu tiên.",
    ),
    "Fewest tokens to add before the end token is allowed.": Word(
        "至少新增多少个词元之后才允许结束符。", "Số token tối thiểu trước khi được phép kết thúc."
    ),
    "Fewest tokens of prompt and answer before the end token is allowed.": Word(
        "提示词与回答合计至少多少个词元之后才允许结束符。",
        "Số token tối thiểu của prompt và câu trả lời trước khi được phép kết thúc.",
    ),
    "When beam search ends: True, False or 'never', as in transformers.": Word(
        "束搜索何时结束：True、False 或 'never'，与 transformers 相同。",
        "Khi nào tìm kiếm chùm kết thúc: True, False hoặc 'never', như trong transformers.",
    ),
    "Exponent of the length that divides a beam's score; higher favours length.": Word(
        "束的分数要除以长度的这个次幂；越大越偏向长的回答。",
        "Số mũ của độ dài chia điểm của một chùm; càng cao càng ưu tiên câu dài.",
    ),
    "Sample among tokens at least this share as probable as the best.": Word(
        "只在概率不低于最高概率的这一比例的词元中采样。",
        "Lấy mẫu trong các token có xác suất ít nhất bằng phần này của token tốt nhất.",
    ),
    "Share kept by locally typical sampling (arXiv 2202.00666).": Word(
        "局部典型采样所保留的份额（arXiv 2202.00666）。",
        "Phần được giữ lại khi lấy mẫu điển hình cục bộ (arXiv 2202.00666).",
    ),
    "No sequence of this many tokens occurs twice; 0 switches it off.": Word(
        "任何这么长的词元序列都不会出现两次；0 表示关闭。",
        "Không chuỗi nào dài chừng này token xuất hiện hai lần; 0 là tắt.",
    ),
    "Texts that end an answer as soon as it contains one of them.": Word(
        "回答一旦包含其中之一就结束的文本。", "Các văn bản kết thúc câu trả lời ngay khi nó chứa một trong số đó."
    ),
    (
        "The transformers release whose beam search is followed: '4.31', which PolyLM was published with, counts the "
        "prompt in the length that length_penalty divides by; '5' counts the answer alone. If unset, '4.31' in the "
        "native and vllm backends and '5' in the transformers backend, which has no other."
    ): Word(
        "遵循哪个 transformers 版本的束搜索：'4.31'（PolyLM 发布时所用）在 length_penalty 所除的长度中计入提示词；"
        "'5' 只计回答。未设置时，native 和 vllm 后端为 '4.31'，transformers 后端为 '5'，后者没有别的规则。",
        "Bản transformers mà tìm kiếm chùm tuân theo: '4.31', bản PolyLM được phát hành cùng, tính cả prompt vào độ "
        "dài mà length_penalty chia; '5' chỉ tính câu trả lời. Nếu chưa đặt, '4.31' ở backend native và vllm, '5' ở "
        "backend transformers, vốn không có quy tắc khác.",
    ),
}
