"""Videos against references of the same names, as for an autoencoder: PSNR, SSIM, jitter, flicker.

Run:    opensora evaluate configs/evaluate/reconstructions.py videos=FOLDER references=FOLDER
Expect: a table per video, and the best and the worst with pictures, in outputs/reconstructions/report.html
"""

videos = "outputs/reconstructed"
references = "outputs/originals"
metrics = dict(psnr=dict(type="PSNR"), ssim=dict(type="SSIM"), jitter=dict(type="Jitter"), flicker=dict(type="Flicker"))
# With weights on disk: st_lpips=dict(type="PerceptualDistance", distance=dict(type="STLPIPS", weights="alex_shift_tolerant.pth"))
report_dir = "outputs/reconstructions"
