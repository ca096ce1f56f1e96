"""What most people would write: python naive_script.py OUT.npy VIDEO... Prints the CPU seconds of the loop."""

import sys
import time

import cv2
import numpy as np
import torch
import torchvision

SAMPLE = 10  # frames of each video

cascade = cv2.CascadeClassifier(cv2.__path__[0] + "/data/haarcascade_frontalface_default.xml")
vgg16 = torchvision.models.vgg16(weights=None).eval()

began_s = time.process_time()
features = []
for path in sys.argv[2:]:
    video = cv2.VideoCapture(path)
    wanted = np.linspace(0, video.get(cv2.CAP_PROP_FRAME_COUNT) - 1, SAMPLE).round()
    number = 0
    while True:
        ok, frame = video.read()
        if not ok:
            break
        if number in wanted:
            faces = cascade.detectMultiScale(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
            if len(faces):
                x, y, w, h = max(faces, key=lambda face: face[2] * face[3])
                crop = cv2.cvtColor(cv2.resize(frame[y : y + h, x : x + w], (299, 299)), cv2.COLOR_BGR2RGB)
                image = (torch.tensor(crop).permute(2, 0, 1)[None] / 255 - 0.45) / 0.225
                with torch.no_grad():
                    features.append(vgg16.features(image).mean((2, 3)).numpy())
        number += 1
np.save(sys.argv[1], np.concatenate(features))
print(time.process_time() - began_s)
