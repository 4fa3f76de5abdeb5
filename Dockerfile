# docker build -t specstream . && docker run -p 127.0.0.1:7860:7860 -v specstream:/home/user/data specstream
FROM python:3.11-slim

# g++ compiles the decoder layers at the first start: twice the speed.
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GRADIO_SERVER_NAME=0.0.0.0 \
    HF_HOME=/home/user/data/huggingface \
    SPECSTREAM_HOME=/home/user/data/specstream \
    SPECSTREAM_DB=/home/user/data/runs.db
WORKDIR $HOME/app

# The CPU build of PyTorch: PyPI's includes several GB of CUDA. For an image with CUDA, omit the first pip install.
COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --no-deps --extra-index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' requirements.txt)" \
    && pip install --no-cache-dir -r requirements.txt

COPY --chown=user . .
# A volume starts as a copy of this folder, so it belongs to the user. It stores models and the log of runs.
RUN mkdir -p /home/user/data
VOLUME /home/user/data
EXPOSE 7860
CMD ["python", "app.py"]
