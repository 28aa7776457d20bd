"""LangChain's ChatOpenAI against a server; run in an environment that has it. `with_langchain.py URL QUESTION`"""

import asyncio
import json
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

url, question = sys.argv[1:]
settings = {"base_url": url, "api_key": "not needed", "model": "tiny", "max_retries": 0}
model = ChatOpenAI(**settings)
greedy = ChatOpenAI(**settings, temperature=0, max_tokens=20, stop=[" von"], logprobs=True)
beams = ChatOpenAI(**settings, n=2, extra_body={"num_beams": 4})


def refusal(messages: list) -> str:
    try:
        return str(model.invoke(messages).content)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def together() -> list:
    answers = await asyncio.gather(*(model.ainvoke(question) for _ in range(8)))
    return [answer.content for answer in answers]


whole = model.invoke(question)
cut = greedy.invoke(question)
chunks = list(ChatOpenAI(**settings, temperature=0, stream_usage=True).stream(question))
chain = ChatPromptTemplate.from_messages([("user", "{text}")]) | model
print(
    json.dumps(
        {
            "whole": whole.content,
            "tokens": whole.usage_metadata,
            "cut": cut.content,
            "logprobs": "".join(token["token"] for token in cut.response_metadata["logprobs"]["content"]),
            "chunks": [chunk.content for chunk in chunks],
            "chunk tokens": sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks),
            "beams": [each.text for each in beams.generate([[HumanMessage(question)]]).generations[0]],
            "chain": chain.invoke({"text": question}).content,
            "conversation": model.invoke([HumanMessage(question), AIMessage("Rom."), HumanMessage(question)]).content,
            "batch": [answer.content for answer in model.batch([question] * 4)],
            "together": asyncio.run(together()),
            "system": refusal([SystemMessage("Be brief."), HumanMessage(question)]),
            "too long": refusal([HumanMessage("a " * 600)]),
        }
    )
)
